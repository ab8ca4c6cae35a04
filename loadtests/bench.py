"""`make bench`: the service against its own engine, in one run: alternating, so that a noisy machine is fair to all.

(a) the engine alone  (b) JPEG to boxes in one process, without Ray or HTTP  (c) the service at several numbers of clients
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil

from loadtests import photos
from loadtests.service import Service, config, free_port, running
from serve_app import boxes, image, loader
from serve_app.loader import Loaded
from serve_app.settings import AppSettings

WARM_UP_S = 3.0


class Measured(NamedTuple):
    """One measurement: images per second, latencies in milliseconds, CPU-milliseconds per image by process."""

    rate: float
    p50: float
    p95: float
    p99: float
    errors: int
    cpu_ms: dict[str, float]


def engine_alone(loaded: Loaded, square: np.ndarray, seconds: float) -> Measured:
    """The network, one image at a time, nothing else."""
    return loop(lambda _: loaded.model(square), seconds)


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
    times = []
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
    before: dict[str, float] = {}

    async def one(n: int) -> None:
        nonlocal errors
        async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
            while (started := time.perf_counter()) < end:
                body = content[n % len(content)]
                answer = await http.post("/v1/predict", content=body, headers={"Content-Type": "image/jpeg"})
                done = time.perf_counter()
                if begin <= done < end:
                    times.append(done - started)
                    errors += answer.status_code != httpx.codes.OK
                n += count

    async def watch() -> None:
        await asyncio.sleep(WARM_UP_S)
        before.update(cpu_seconds(pid))

    await asyncio.gather(watch(), *(one(n) for n in range(count)))
    after = cpu_seconds(pid)
    done = max(len(times), 1)
    spent = {k: (after[k] - before.get(k, 0)) * 1000 / done for k in after}
    return summary(times, seconds, errors, {k: v for k, v in sorted(spent.items(), key=lambda kv: -kv[1]) if v > 0.3})


def cpu_seconds(pid: int) -> dict[str, float]:
    """CPU time of each process of the service so far, by what it does."""
    spent: dict[str, float] = {}
    for process in psutil.Process(pid).children(recursive=True):
        try:
            times, words = process.cpu_times(), process.cmdline()
        except psutil.Error:
            continue
        name = words[0] if words and words[0].startswith("ray::") else Path(words[-1] if words else "?").name
        for known in ("haproxy", "raylet", "gcs_server", "dashboard", "log_monitor", "runtime_env"):
            if any(known in word for word in words):
                name = known
        spent[name[:40]] = spent.get(name[:40], 0) + times.user + times.system
    return spent


def photos_of(folder: Path | None) -> list[bytes]:
    """Real photos: those of the folder, else the two that every installation has."""
    if folder and folder.exists():
        return [p.read_bytes() for p in sorted(folder.glob("*.jpg"))]
    return [photos.bus(), photos.zidane()]


def run(content: list[bytes], counts: list[int], seconds: float, rounds: int, settings: dict[str, Any]) -> dict[str, Any]:
    """All measurements, `rounds` times in turn."""
    args = AppSettings.model_validate(config(0)["applications"][0]["args"] | settings)
    pinned = loader.pin(args.weights, args)
    size = args.image_size or pinned.image_size
    loaded = loader.load(
        pinned.uri, lambda u: loader.fetch(u, args), settings=args, size=size, device="cpu", batch_sizes={1}
    )
    square = image.prepare(content[0], size, 52_000_000)[0][None]
    found: dict[str, list[Measured]] = {}
    with running(config(free_port(), **settings)) as service:
        for _ in range(rounds):
            for name, measure in measurements(service, loaded, size, square, content, counts, seconds).items():
                found.setdefault(name, []).append(measure())
                print(f"{name:14s}", line(found[name][-1]), flush=True)
    base = statistics.median(m.rate for m in found["in process"])
    print(f"\n{'median of ' + str(rounds):14s}  img/s   ÷ in process   p50 ms   p95 ms   p99 ms")
    for name, several in found.items():
        rate, p50, p95, p99 = (statistics.median(m[i] for m in several) for i in range(4))
        print(f"{name:14s} {rate:6.1f}   {rate / base:12.2f} {p50:8.1f} {p95:8.1f} {p99:8.1f}")
    return {name: [m._asdict() for m in several] for name, several in found.items()}


def measurements(
    service: Service, loaded: Loaded, size: int, square: np.ndarray, content: list[bytes], counts: list[int], seconds: float
) -> dict[str, Callable[[], Measured]]:
    """What is measured in one round."""
    chosen: dict[str, Callable[[], Measured]] = {
        "engine": lambda: engine_alone(loaded, square, seconds),
        "in process": lambda: in_process(loaded, size, content, seconds),
    }
    for count in counts:
        chosen[f"{count} clients"] = lambda count=count: asyncio.run(
            clients(service.url, content, count, seconds, service.pid)
        )
    return chosen


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
