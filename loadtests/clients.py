"""Clients that send photos to a running service, and measure its throughput, latency and CPU time."""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import aiohttp
import psutil
import uvloop

from loadtests.photo_mix import Photo

WARM_UP_S = 3.0
GIVE_UP_S = 60.0
CLIENTS = "these clients"
STAGES = re.compile(r"(\w+);dur=([\d.]+)")  # in the Server-Timing header
REPLICA = re.compile(r'detect;[^,]*desc="(\w+)"')  # in the same header
BATCH = re.compile(rb'"batch_size": ?(\d+)')
KNOWN = ("haproxy", "raylet", "gcs_server", "dashboard", "log_monitor", "runtime_env")


class Measured(NamedTuple):
    """One measurement: images/s, latencies in milliseconds, errors, and CPU-milliseconds per image by process."""

    rate: float
    p50: float
    p95: float
    p99: float
    errors: int
    cpu_ms: dict[str, float]

    def __str__(self) -> str:
        spent = ", ".join(f"{k} {v:.1f}" for k, v in list(self.cpu_ms.items())[:7])
        return (
            f"{self.rate:6.1f} img/s  p50 {self.p50:6.1f}  p95 {self.p95:6.1f} ms  errors {self.errors}  "
            f"CPU-ms/img: {spent}"
        )


class Asked(NamedTuple):
    """One request of an open workload. Times are in seconds since its start; the rest is from the answer."""

    sent: float
    done: float
    status: int  # 0 when there was no answer
    stages_ms: dict[str, float]
    batch: int
    replica: str


def summary(times: list[float], took: float, errors: int, cpu_s: dict[str, float]) -> Measured:
    """Makes a measurement of `took` seconds from latencies and CPU times, all in seconds."""
    cuts = statistics.quantiles([t * 1000 for t in times], n=100)
    cpu_ms = {name: spent * 1000 / len(times) for name, spent in cpu_s.items()}
    shown = {k: v for k, v in sorted(cpu_ms.items(), key=lambda kv: -kv[1]) if v > 0.1}
    return Measured(len(times) / took, cuts[49], cuts[94], cuts[98], errors, shown)


def measure(
    url: str,
    content: list[bytes],
    count: int,
    seconds: float,
    pid: int,
    *,
    path: str = "/v1/predict",
    media_type: str = "image/jpeg",
) -> Measured:
    """Runs `count` closed-loop clients with one connection each. The first WARM_UP_S seconds are not counted."""
    return uvloop.run(_measure(url, content, count, seconds, pid, path=path, media_type=media_type))


def measure_together(
    url: str, content: list[bytes], count: int, seconds: float, pid: int, *, processes: int
) -> Measured:
    """`measure` with the clients spread over several processes, where one would be the bottleneck."""
    each, context = max(count // processes, 1), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        list(pool.map(time.sleep, [1.0] * processes))  # all have started
        asked = [pool.submit(measure, url, content, each, seconds, pid) for _ in range(processes)]
        found = [one.result() for one in asked]
    rate = sum(m.rate for m in found)
    cpu_ms: dict[str, float] = {}
    for m in found:  # each has counted all CPU time of the service, but only its own clients' images
        for name, spent in m.cpu_ms.items():
            weight = 1 if name == CLIENTS else 1 / processes
            cpu_ms[name] = cpu_ms.get(name, 0) + weight * spent * m.rate / rate
    p50, p95, p99 = (max(getattr(m, p) for m in found) for p in ("p50", "p95", "p99"))
    ordered = dict(sorted(cpu_ms.items(), key=lambda kv: -kv[1]))
    return Measured(rate, p50, p95, p99, sum(m.errors for m in found), ordered)


async def _measure(
    url: str, content: list[bytes], count: int, seconds: float, pid: int, *, path: str, media_type: str
) -> Measured:
    times: list[float] = []
    errors = 0
    begin = time.perf_counter() + WARM_UP_S
    end = begin + seconds

    async def one(n: int) -> None:
        nonlocal errors
        while (started := time.perf_counter()) < end:
            body = content[n % len(content)]
            async with http.post(path, data=body, headers={"Content-Type": media_type}) as answer:
                await answer.read()
            done = time.perf_counter()
            if not answer.ok:
                errors += 1
                await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
            elif begin <= done < end:
                times.append(done - started)
            n += count

    async def watch() -> dict[str, float]:
        await asyncio.sleep(WARM_UP_S)
        before, own = cpu_seconds(pid), time.process_time()
        await asyncio.sleep(end - time.perf_counter())
        spent = {CLIENTS: time.process_time() - own}
        for process, (name, total) in cpu_seconds(pid).items():
            spent[name] = spent.get(name, 0) + total - before.get(process, (name, total))[1]
        return spent

    # aiohttp: httpx costs 2 ms of CPU per request, on the cores that the service needs.
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=count)) as http:
        watching = asyncio.create_task(watch())
        await asyncio.gather(*(one(n) for n in range(count)))
    return summary(times, seconds, errors, await watching)


async def offer(url: str, photos: Sequence[Photo], arrivals: Iterable[float]) -> list[Asked]:
    """An open workload: sends a photo at each arrival (seconds from now) without waiting for earlier answers."""
    began, asked = time.perf_counter(), list[Asked]()

    async def one(photo: Photo, moment: float) -> None:
        status, stages, body = 0, "", b""
        try:
            headers = {"Content-Type": photo.media_type}
            async with http.post("/v1/predict", data=photo.content, headers=headers) as answer:
                body = await answer.read()
                status, stages = answer.status, answer.headers.get("Server-Timing", "")
        except (aiohttp.ClientError, TimeoutError):
            pass
        found = BATCH.search(body)
        spent = {name: float(ms) for name, ms in STAGES.findall(stages)}
        batch, replica = int(found[1]) if found else 0, "".join(REPLICA.findall(stages))
        asked.append(Asked(moment, time.perf_counter() - began, status, spent, batch, replica))

    timeout, connector = aiohttp.ClientTimeout(GIVE_UP_S), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as http, asyncio.TaskGroup() as tasks:
        for n, moment in enumerate(arrivals):
            await asyncio.sleep(max(0.0, began + moment - time.perf_counter()))
            # Latency counts from the moment a request was due: a late client must not make the service look faster.
            tasks.create_task(one(photos[n % len(photos)], moment))
    return sorted(asked)


def cpu_seconds(pid: int) -> dict[int, tuple[str, float]]:
    """Name and CPU seconds of each process of the service. The key is the PID, because Ray renames its processes."""
    spent = {}
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            times = process.cpu_times()
            spent[process.pid] = name_of(process), times.user + times.system
        except psutil.Error:
            continue
    return spent


def others_seconds(pid: int) -> float:
    """CPU seconds so far of everything but the service and these clients, including time the hypervisor has stolen."""
    own = sum(spent for _, spent in cpu_seconds(pid).values()) + time.process_time()
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice - own)


def name_of(process: psutil.Process) -> str:
    """The role of a process of the service, such as `raylet`."""
    words = process.cmdline()
    if words and words[0].startswith("ray::"):
        return words[0].removeprefix("ray::")
    file = Path(words[-1] if words else "?").name.split(".")[0]
    return next((k for k in KNOWN if any(k in word for word in words)), file)
