"""`python -m loadtests.capacity.rehearsal`: Serve's autoscaler at work on this machine, and the same simulated.

The network is a sleep (clockwork.py), so that replicas add up on few cores; all else is what ships. From the curve of
one replica (`capacity measure --difference`, see CLOCKWORK) comes a plan; its patch is served under a load that rises
and falls, with the number of replicas as Serve tells it; then the same arrivals are replayed. Prints how often both
agree, and draws them.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import time
from http import HTTPStatus
from pathlib import Path

import numpy as np
import uvloop

from loadtests import clients
from loadtests.capacity import curve, plots, sizing
from loadtests.capacity.autoscaler import Autoscaler
from loadtests.capacity.replay import Cluster, Delays, Moment
from loadtests.capacity.station import Array
from loadtests.capacity.trace import Trace
from loadtests.mix import mix
from loadtests.service import ROOT, Service, detector, running, shipped, status
from serve_app import configuration

# As YAML over serve_config.yaml.
CLOCKWORK = "applications: [{name: recognition, import_path: 'loadtests.capacity.clockwork:build'}]"
POLL_S = 0.5
Seen = list[tuple[float, int, int]]  # (seconds, wanted, running)


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


def step_at(series: list[tuple[float, int]], moments: Array) -> Array:
    """What held at each moment."""
    index = np.searchsorted([seconds for seconds, _ in series], moments, side="right") - 1
    return np.array([float(value) for _, value in series])[np.clip(index, 0, None)]


def main(args: argparse.Namespace) -> None:
    """Prints the agreement."""
    measured = curve.read(args.curve)
    most = measured.station().most
    made = sizing.make(measured, 2.2 * most, args.p95_ms, availability="none", low_rps=0.3 * most)
    patch = made.serve()
    door = detector(patch)
    door["autoscaling_config"]["downscale_delay_s"] = args.downscale_delay_s
    scaling = door["autoscaling_config"]
    door["ray_actor_options"] = {"num_cpus": 0.3}  # so that all of them find a place here
    content = configuration.merged(shipped(CLOCKWORK), patch)
    trace = Trace((0, 60, 200, 380), (0.3 * most, 2.2 * most, 0.3 * most))
    arrivals = trace.arrivals(np.random.default_rng(args.seed))
    with running(content) as service:
        asked, real = uvloop.run(observed(service, arrivals.tolist(), trace.length))
    delays = Delays(replica_s=cold_start(real), ask_s=0, node_s=0, image_s=0)
    rng, station = np.random.default_rng(args.seed), dataclasses.replace(measured.station(), room=made.room)
    replayed = Cluster(station, Autoscaler(scaling), delays, made.replicas, 1, rng).run(arrivals, trace.length)
    report(real, replayed.moments, trace.length)
    served = np.array([(one.sent, one.done - one.sent) for one in asked if one.status == HTTPStatus.OK]).T
    told("Serve", served[0], served[1], len(asked) - len(served[0]))
    told("simulated", replayed.outcome.sent, replayed.outcome.latency, len(replayed.outcome.refused))
    planned = f"planned {made.fewest} to {made.replicas} replicas, p95 {made.p95:.0f} ms of {made.p95_ms:g}"
    print(f"cold start {delays.replica_s:.1f} s; {planned}")
    plots.agreement(real, replayed.moments, trace, args.out / "agreement.png")


def told(name: str, sent: Array, latency: Array, refused: int) -> None:
    """Of all, and of the last minute of the high load, when all replicas are there."""
    late = latency[(sent >= 140) & (sent < 200)]
    p50, p95, then = (1000 * float(x) for x in (*np.percentile(latency, [50, 95]), np.percentile(late, 95)))
    print(f"{name}: p50 {p50:.0f} ms, p95 {p95:.0f} ms, from 140 s to 200 s {then:.0f} ms; {refused} refused")


def report(real: Seen, simulated: list[Moment], length: float) -> None:
    """How often the numbers are the same, and when each changed."""
    moments = np.arange(0, length, POLL_S)
    ran = step_at([(seconds, up) for seconds, _, up in real], moments)
    would = step_at([(moment.seconds, moment.running) for moment in simulated], moments)
    print(f"the same number of replicas in {np.mean(ran == would):.0%} of the time, never more than "
          f"{np.max(np.abs(ran - would)):g} apart; replica-seconds {would.sum() / ran.sum() - 1:+.1%}")  # fmt: skip
    for name, values in (("Serve", ran), ("simulated", would)):
        changes = np.flatnonzero(np.diff(values)) + 1
        print(f"{name}: {values[0]:g}, " + ", ".join(f"{values[n]:g} at {moments[n]:.0f} s" for n in changes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = ROOT / "build" / "capacity"
    parser.add_argument("--curve", type=Path, default=out / "clockwork.json", help="of a replica of CLOCKWORK")
    parser.add_argument("--p95-ms", type=float, default=1000.0)
    parser.add_argument("--downscale-delay-s", type=float, default=30.0, help="instead of ten minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=out)
    main(parser.parse_args())
