"""`make observe`: the service with a Prometheus beside it and some load; says where to look, draws the dashboards."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from loadtests import panels
from loadtests.prometheus import observed
from loadtests.service import config, dashboard, free_port
from loadtests.traffic import Traffic
from serve_app import monitoring, photos

RATE = 6.0  # photos/s, below what two cores do
BURST, BURST_S = 80.0, 15.0  # photos/s, far above it
CUT = photos.bus()[:3000]  # an image that is cut off


async def mistakes(traffic: Traffic, seconds: float) -> None:
    """What clients also send, once a second: a photo that is cut off, and no photo at all."""
    end = time.monotonic() + seconds
    async with traffic.session() as http:
        while time.monotonic() < end:
            for body, kind in ((CUT, "image/jpeg"), (b"hello", "text/plain")):
                async with http.post(f"{traffic.url}/v1/predict", data=body, headers={"Content-Type": kind}) as answer:
                    await answer.read()
            await asyncio.sleep(1)


def main(minutes: float, out: Path) -> int:
    """Returns the exit code."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        with observed(config(free_port())) as (service, prometheus):
            print(f"service {service.url}\nPrometheus {prometheus.url} (alerts: {prometheus.url}/alerts)")
            print(f"Ray's dashboard {dashboard(service)}, token in ~/.ray/auth_token")
            traffic = Traffic(service.url, [photos.bus(), photos.zidane()])
            burst = f"{BURST:g} photos/s for {BURST_S:g} s in the middle"
            print(f"load: {RATE:g} photos/s and some mistakes, for {minutes:g} minutes; {burst}", flush=True)
            with traffic.flowing(closed=0, rate=RATE):
                asyncio.run(mistakes(traffic, minutes * 30))
                traffic.burst(BURST, BURST_S)
                asyncio.run(mistakes(traffic, minutes * 30))
            for board in monitoring.source("dashboards"):
                panels.draw(prometheus, board, out / f"{board}.png", minutes * 60)
                print(out / f"{board}.png")
            print(f"alerts that fire: {', '.join(sorted(prometheus.firing())) or 'none'}")
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path("build/observe"), help="folder for the pictures")
    asked = parser.parse_args()
    sys.exit(main(asked.minutes, asked.out))
