"""`python -m loadtests.rehearsal`: Serve's autoscaler at work on this machine, and the same simulated.

The network is a sleep (clockwork.py), so that replicas add up on few cores; all else is what ships. A curve of one
replica comes first; then the trace, with the number of replicas as Serve tells it; then its replay with the same
arrivals. Prints how often both agree, and draws them.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
import yaml

from loadtests import clients, curve, plots
from loadtests.autoscaler import Autoscaler
from loadtests.mix import mix
from loadtests.replay import Cluster, Delays, Moment
from loadtests.service import ROOT, Service, config, detector, free_port, running, status
from loadtests.trace import Trace
from serve_app import configuration

CLOCKWORK = "applications: [{name: recognition, import_path: 'loadtests.clockwork:build'}]"
PRODUCTION = ROOT / "kuberay" / "overlays" / "production" / "serve.yaml"
POLL_S = 0.5
Seen = list[tuple[float, int, int]]  # (seconds, wanted, running)


def autoscaling(downscale_delay_s: float) -> dict[str, Any]:
    """Production's, for 1 to 3 replicas, and with less patience."""
    production = yaml.safe_load(PRODUCTION.read_text())["applications"][0]["deployments"][0]["autoscaling_config"]
    ours = {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 2, "downscale_delay_s": downscale_delay_s}
    merged: dict[str, Any] = configuration.merged(production, ours)
    return merged


async def observed(service: Service, arrivals: list[float], length: float) -> tuple[list[clients.Asked], Seen]:
    """Sends the requests, and asks Serve for its replicas meanwhile."""
    seen: Seen = []
    began = time.monotonic()

    async def watch() -> None:
        while time.monotonic() - began < length:
            door = (await asyncio.to_thread(status, service))["deployments"]["Ingress"]
            up = sum(replica["state"] == "RUNNING" for replica in door["replicas"])
            seen.append((time.monotonic() - began, door["target_num_replicas"], up))
            await asyncio.sleep(POLL_S)

    asked, _ = await asyncio.gather(clients.offer(service.url, mix(), arrivals), watch())
    return asked, seen


def cold_start(seen: Seen) -> float:
    """From wanted to running, in seconds: the median over all that were added."""
    waits, wanted_at, before = list[float](), dict[int, float](), 0
    for seconds, wanted, up in seen:
        for number in range(up + 1, wanted + 1):
            wanted_at.setdefault(number, seconds)
        for number in range(before + 1, up + 1):
            if number in wanted_at:
                waits.append(seconds - wanted_at.pop(number))
        before = up
    return float(np.median(waits)) if waits else 0.0


def step_at(series: list[tuple[float, int]], moments: np.ndarray) -> np.ndarray:
    """What held at each moment."""
    index = np.searchsorted([seconds for seconds, _ in series], moments, side="right") - 1
    return np.array([value for _, value in series])[np.clip(index, 0, None)]


def main(args: argparse.Namespace) -> None:
    """Prints the agreement."""
    content = curve.fixed(CLOCKWORK, 1)
    with running(content) as service:
        measured = curve.measure(content, service, mix(), seconds=args.seconds, rounds=1)
    curve.write(measured, args.out / "clockwork.json")
    scaling = autoscaling(args.downscale_delay_s)
    content = configuration.merged(config(free_port()), yaml.safe_load(CLOCKWORK))
    door = detector(content)
    door.pop("num_replicas")
    door |= {"autoscaling_config": scaling, "ray_actor_options": {"num_cpus": 0.3, "num_gpus": 0}}
    most = measured.station().most
    trace = Trace((0, 60, 180, 330), (0.3 * most, 2.2 * most, 0.3 * most))
    arrivals = trace.arrivals(np.random.default_rng(args.seed))
    with running(content) as service:
        asked, real = uvloop.run(observed(service, arrivals.tolist(), trace.length))
    delays = Delays(replica_s=cold_start(real), ask_s=0, node_s=0, image_s=0)
    rng = np.random.default_rng(args.seed)
    replayed = Cluster(measured.station(), Autoscaler(scaling), delays, 1, 3, rng).run(arrivals, trace.length)
    report(real, replayed.moments, trace.length)
    measured_s = [one.done - one.sent for one in asked]
    for name, latency in (("Serve", measured_s), ("simulated", replayed.outcome.latency)):
        print(f"{name}: p50 {np.percentile(latency, 50):.2f} s, p95 {np.percentile(latency, 95):.2f} s")
    print(
        f"cold start {delays.replica_s:.1f} s; {sum(one.status != 200 for one in asked)} of {len(asked)} not answered"
    )
    plots.agreement(real, replayed.moments, trace, args.out / "agreement.png")


def report(real: Seen, simulated: list[Moment], length: float) -> None:
    """How often the numbers are the same, and when each changed."""
    moments = np.arange(0, length, POLL_S)
    ran = step_at([(seconds, up) for seconds, _, up in real], moments)
    would = step_at([(moment.seconds, moment.running) for moment in simulated], moments)
    print(f"the same number of replicas in {np.mean(ran == would):.0%} of the time, never more than "
          f"{np.max(np.abs(ran - would))} apart; replica-seconds {would.sum() / ran.sum() - 1:+.1%}")  # fmt: skip
    for name, values in (("Serve", ran), ("simulated", would)):
        changes = np.flatnonzero(np.diff(values)) + 1
        print(f"{name}: {values[0]}, " + ", ".join(f"{values[n]} at {moments[n]:.0f} s" for n in changes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load of the curve")
    parser.add_argument("--downscale-delay-s", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "capacity")
    main(parser.parse_args())
