"""`make overload`: sends ten times the peak rate; prints the goodput and how quickly the rest is refused."""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections import Counter

from loadtests import clients
from loadtests.service import Service, config, free_port, running
from loadtests.traffic import Traffic, tail
from serve_app.vision import sample_photos

FULL = 96  # closed-loop clients: they keep the queue filled and are not refused


async def recovery(traffic: Traffic, normal_s: float) -> float:
    """Seconds until three answers in a row take at most twice `normal_s`."""
    began, quick, n = time.monotonic(), 0, 0
    async with traffic.session() as http:
        while quick < 3:
            row = await traffic.ask(http, n)
            quick = quick + 1 if row.verdict == "answered" and row.done - row.sent <= 2 * normal_s else 0
            n += 1
    return time.monotonic() - began


async def learn(traffic: Traffic) -> float:
    """Learns the right answers; returns the median latency of one client, in seconds."""
    async with traffic.session() as http:
        await traffic.learn(http)
        rows = [await traffic.ask(http, n) for n in range(20)]
    return statistics.median(row.done - row.sent for row in rows)


def overload(service: Service, times: float, seconds: float) -> dict[str, float]:
    """Sends `times` the peak rate for `seconds`. Returns ratios and seconds, by name."""
    content = [sample_photos.bus(), sample_photos.zidane()]
    traffic = Traffic(service.url, content)
    normal = asyncio.run(learn(traffic))
    peak = clients.measure(service.url, content, FULL, max(seconds / 4, 5), service.pid)
    print(f"peak with {FULL} clients: {peak}", flush=True)
    began, own = time.monotonic(), time.process_time()
    rows = traffic.burst(times * peak.rate, seconds)
    own = time.process_time() - own
    offered = [row for row in rows if row.sent <= began + seconds]
    answered = [r for r in offered if r.verdict == "answered"]
    refused = [r for r in offered if r.verdict == "refused"]
    during = sum(r.done <= began + seconds for r in answered)
    seen = Counter(r.verdict for r in rows)
    print(f"offered {len(offered) / seconds:.0f}/s for {seconds:g} s: {dict(seen)}")
    for row in [r for r in rows if r.verdict not in ("answered", "refused")][:5]:
        print(f"    {row.verdict} after {row.done - row.sent:.2f} s: {row.detail[:200]}")
    # The clients run on the service's cores: the CPU share that they take beyond their share at the peak.
    cores = os.cpu_count() or 1
    theirs = (own / seconds - peak.cpu_ms["these clients"] * peak.rate / 1000) / cores
    return {
        "goodput / peak": during / seconds / peak.rate,
        "goodput / peak, of the CPU left": during / seconds / peak.rate / (1 - theirs),
        "p95 of answers / p95 at the peak": tail(answered) * 1000 / peak.p95,
        "p95 of refusals, s": tail(refused),
        "recovery, s": asyncio.run(recovery(traffic, normal)),
        "neither answered nor refused": len(rows) - seen["answered"] - seen["refused"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    with running(config(free_port())) as started:
        for what, value in overload(started, args.times, args.seconds).items():
            print(f"{what:36s} {value:8.3f}")
