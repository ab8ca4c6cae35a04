"""`make endurance`: half an hour at 80 % of the largest rate. Prints errors and the memory slope of each process."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil

from loadtests import clients
from loadtests.photo_mix import Photo, photos_of
from loadtests.service import Service, config, free_port, running

Memory = dict[str, list[tuple[float, float]]]  # by process: (seconds since the start, MB)
SETTLED = 0.2  # share of the run after which allocators and caches have reached their size


def resident(pid: int) -> dict[str, float]:
    """Megabytes of each process of the service, excluding shared memory."""
    found: dict[str, float] = {}
    for process in psutil.Process(pid).children(recursive=True):
        try:
            memory, name = process.memory_info(), clients.name_of(process).split(".")[0]
        except psutil.Error:
            continue
        found[name] = found.get(name, 0) + (memory.rss - memory.shared) / 1e6
    return found


async def load(service: Service, content: list[bytes], rate: float, seconds: float, memory: Memory) -> Counter[int]:
    """Sends `rate` photos a second in an open loop, and samples the memory. Returns how often each status occurred."""
    began = time.monotonic()

    async def watch() -> None:
        while (now := time.monotonic() - began) < seconds:
            for name, megabytes in (await asyncio.to_thread(resident, service.pid)).items():
                memory.setdefault(name, []).append((now, megabytes))
            await asyncio.sleep(10)

    photos = [Photo("", "image/jpeg", data) for data in content]
    offered = clients.offer(service.url, photos, (n / rate for n in range(int(rate * seconds))))
    asked, _ = await asyncio.gather(offered, watch())
    return Counter(one.status for one in asked)


def slope(samples: list[tuple[float, float]]) -> tuple[float, float, float]:
    """(first MB, last MB, MB per hour by least squares) of the part of a run after SETTLED."""
    settled = [s for s in samples if s[0] >= SETTLED * samples[-1][0]]
    at, megabytes = np.array(settled).T
    return megabytes[0], megabytes[-1], float(np.polyfit(at / 3600, megabytes, 1)[0])


def main(folder: Path | None, minutes: float, part: float) -> None:
    """Prints how often each status occurred, and the memory slope of each process."""
    content, memory = photos_of(folder), Memory()
    with running(config(free_port())) as service:
        most = clients.measure(service.url, content, 16, 10, service.pid)
        print(f"largest rate {most.rate:.1f} img/s; running at {part:.0%} of it for {minutes:g} minutes", flush=True)
        statuses = asyncio.run(load(service, content, part * most.rate, minutes * 60, memory))
    print(f"answers by status: {dict(statuses)}")
    for name, samples in sorted(memory.items(), key=lambda kv: -kv[1][-1][1]):
        if len(samples) > 3:
            first, last, hourly = slope(samples)
            print(f"{name:40s} {first:7.1f} MB to {last:7.1f} MB, {hourly:+7.1f} MB/h")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of JPEGs")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--load", type=float, default=0.8, help="share of the largest rate")
    args = parser.parse_args()
    main(args.photos, args.minutes, args.load)
