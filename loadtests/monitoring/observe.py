"""`make observe`: runs the service with load and a Prometheus, prints their URLs and draws the dashboards."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from loadtests.monitoring import panels
from loadtests.monitoring.prometheus import observed
from loadtests.service import announced, config, dashboard, free_port
from loadtests.traffic import Traffic
from serve_app.ops import monitoring
from serve_app.ops.service_folder import TOKEN
from serve_app.vision import sample_photos

RATE = 6.0  # photos/s, below the largest rate of two cores
BURST, BURST_S = 80.0, 15.0  # photos/s, far above it, for so many seconds
CUT = sample_photos.bus()[:3000]  # a truncated JPEG


async def mistakes(traffic: Traffic, seconds: float) -> None:
    """Sends two bad requests a second: a truncated photo, and a body that is no photo."""
    end = time.monotonic() + seconds
    async with traffic.session() as http:
        while time.monotonic() < end:
            for body, kind in ((CUT, "image/jpeg"), (b"hello", "text/plain")):
                async with http.post(f"{traffic.url}/v1/predict", data=body, headers={"Content-Type": kind}) as answer:
                    await answer.read()
            await asyncio.sleep(1)


def main(minutes: float, out: Path) -> int:
    """Runs everything for `minutes` and draws to the folder `out`. Returns the exit code: 1 without Prometheus."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        with observed(config(free_port())) as (service, prometheus):
            print(f"service {service.url}\nPrometheus {prometheus.url} (alerts: {prometheus.url}/alerts)")
            print(f"Ray's dashboard {dashboard(service)}, token in {announced(service).folder}/{TOKEN}")
            traffic = Traffic(service.url, [sample_photos.bus(), sample_photos.zidane()])
            burst = f"{BURST:g} photos/s for {BURST_S:g} s in the middle"
            print(f"load: {RATE:g} photos/s and some bad requests, for {minutes:g} minutes; {burst}", flush=True)
            with traffic.flowing(closed=0, rate=RATE):
                asyncio.run(mistakes(traffic, minutes * 30))
                traffic.burst(BURST, BURST_S)
                asyncio.run(mistakes(traffic, minutes * 30))
            for board in monitoring.source("dashboards"):
                panels.draw(prometheus, board, out / f"{board}.png", minutes * 60)
                print(out / f"{board}.png")
            print(f"firing alerts: {', '.join(sorted(prometheus.firing())) or 'none'}")
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path("build/observe"), help="folder for the pictures")
    args = parser.parse_args()
    sys.exit(main(args.minutes, args.out))
