"""`make bench`: the service against its own engine, in one run: alternating, so that a noisy machine is fair to all.

(a) the engine alone  (b) JPEG to boxes in one process, without Ray or HTTP  (c) the service
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

from loadtests import photos
from loadtests.service import Service, config, free_port, running
from serve_app import boxes, image, loader
from serve_app.loader import Loaded
from serve_app.settings import AppSettings

Results = dict[str, list[dict[str, Any]]]
WARM_UP_S = 3.0
KNOWN = ("haproxy", "raylet", "gcs_server", "dashboard", "log_monitor", "runtime_env")


class Measured(NamedTuple):
    """One measurement: images per second, latencies in milliseconds, CPU-milliseconds per image by process."""

    rate: float
    p50: float
    p95: float
    p99: float
    errors: int
    cpu_ms: dict[str, float]


def in_process(loaded: Loaded, size: int, content: list[bytes], seconds: float) -> Measured:
    """JPEG to boxes, with the service's own functions, in one thread."""

    def once(n: int) -> None:
        squares, box = image.prepare(content[n % len(content)], size, 52_000_000)
        found = boxes.candidates(loaded.model(squares[None])[0], 0.25, None)
        boxes.to_photo(boxes.non_max_suppression(found, 0.7, 300), box)

    return loop(once, seconds)


def loop(once: Callable[[int], object], seconds: float) -> Measured:
    """Calls again and again."""
    for n in range(3):
        once(n)
    times: list[float] = []
    begun, cpu = time.perf_counter(), time.process_time()
    while (started := time.perf_counter()) < begun + seconds:
        once(len(times))
        times.append(time.perf_counter() - started)
    spent = (time.process_time() - cpu) * 1000 / len(times)
    return summary(times, time.perf_counter() - begun, 0, {"this process": spent})


def summary(times: list[float], took: float, errors: int, cpu_ms: dict[str, float]) -> Measured:
    """Rates and percentiles."""
    cuts = statistics.quantiles([t * 1000 for t in times], n=100)
    return Measured(len(times) / took, cuts[49], cuts[94], cuts[98], errors, cpu_ms)


async def clients(url: str, content: list[bytes], count: int, seconds: float, pid: int) -> Measured:
    """Keep-alive clients, each sending one photo after the other; the first seconds are not counted."""
    times: list[float] = []
    errors = 0
    begin = time.perf_counter() + WARM_UP_S
    end = begin + seconds
    before: dict[int, tuple[str, float]] = {}

    async def one(n: int) -> None:
        nonlocal errors
        async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
            while (started := time.perf_counter()) < end:
                body = content[n % len(content)]
                answer = await http.post("/v1/predict", content=body, headers={"Content-Type": "image/jpeg"})
                done = time.perf_counter()
                if answer.status_code != httpx.codes.OK:
                    errors += 1
                    await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
                elif begin <= done < end:
                    times.append(done - started)
                n += count

    async def watch() -> None:
        await asyncio.sleep(WARM_UP_S)
        before.update(cpu_seconds(pid))

    await asyncio.gather(watch(), *(one(n) for n in range(count)))
    after = cpu_seconds(pid)
    done = max(len(times), 1)
    spent: dict[str, float] = {}
    for process, (name, total) in after.items():
        spent[name] = spent.get(name, 0) + (total - before.get(process, (name, total))[1]) * 1000 / done
    return summary(times, seconds, errors, {k: v for k, v in sorted(spent.items(), key=lambda kv: -kv[1]) if v > 0.2})


def cpu_seconds(pid: int) -> dict[int, tuple[str, float]]:
    """Each process of the service: what it does, and its CPU time so far. Ray renames its processes while they run."""
    spent = {}
    for process in psutil.Process(pid).children(recursive=True):
        try:
            times, words = process.cpu_times(), process.cmdline()
        except psutil.Error:
            continue
        name = words[0] if words and words[0].startswith("ray::") else Path(words[-1] if words else "?").name
        name = next((k for k in KNOWN if any(k in word for word in words)), name)
        spent[process.pid] = name.split(".")[0].removeprefix("ray::"), times.user + times.system
    return spent


def photos_of(folder: Path | None) -> list[bytes]:
    """Real photos: those of the folder, else the two that every installation has."""
    if folder and folder.exists():
        return [p.read_bytes() for p in sorted(folder.glob("*.jpg"))]
    return [photos.bus(), photos.zidane()]


def run(content: list[bytes], counts: list[int], seconds: float, rounds: int, settings: dict[str, Any]) -> Results:
    """All measurements, `rounds` times in turn."""
    args = AppSettings.model_validate(config(0)["applications"][0]["args"] | settings)
    pinned = loader.pin(args.weights, args)
    size = args.image_size or pinned.image_size
    get = partial(loader.fetch, settings=args)
    loaded = loader.load(pinned.uri, get, settings=args, size=size, device="cpu", batch_sizes={1})
    square = image.prepare(content[0], size, 52_000_000)[0][None]
    found: dict[str, list[Measured]] = {}
    with running(config(free_port(), **settings)) as service:
        measures: dict[str, Callable[[], Measured]] = {
            "engine": partial(loop, lambda _: loaded.model(square), seconds),
            "in process": partial(in_process, loaded, size, content, seconds),
        }
        for count in counts:
            measures[f"{count} clients"] = partial(served, service, content, count, seconds)
        for _ in range(rounds):
            for name, measure in measures.items():
                found.setdefault(name, []).append(measure())
                print(f"{name:14s}", line(found[name][-1]), flush=True)
    base = statistics.median(m.rate for m in found["in process"])
    print(f"\n{'median of ' + str(rounds):14s}  img/s   ÷ in process   p50 ms   p95 ms   p99 ms")
    for name, several in found.items():
        rate = statistics.median(m.rate for m in several)
        p50, p95, p99 = (statistics.median(getattr(m, p) for m in several) for p in ("p50", "p95", "p99"))
        print(f"{name:14s} {rate:6.1f}   {rate / base:12.2f} {p50:8.1f} {p95:8.1f} {p99:8.1f}")
    return {name: [m._asdict() for m in several] for name, several in found.items()}


def served(service: Service, content: list[bytes], count: int, seconds: float) -> Measured:
    """The service at a number of clients."""
    return asyncio.run(clients(service.url, content, count, seconds, service.pid))


def line(m: Measured) -> str:
    """One measurement, to read while it runs."""
    spent = ", ".join(f"{k} {v:.1f}" for k, v in list(m.cpu_ms.items())[:7])
    return f"{m.rate:6.1f} img/s  p50 {m.p50:6.1f}  p95 {m.p95:6.1f} ms  errors {m.errors}  CPU-ms/img: {spent}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of JPEGs")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the application")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    results = run(
        photos_of(asked.photos), asked.clients, asked.seconds, asked.rounds, dict(s.split("=", 1) for s in asked.set)
    )
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1))
