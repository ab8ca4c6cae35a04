"""`python -m loadtests.capacity.rehearsal`: compares Serve's autoscaler on this machine with its simulation.

The network is a sleep (fixed_time_engine.py), so several replicas fit on few cores; everything else is as shipped. The
curve of one replica (`capacity measure --difference`, see FIXED_TIME) gives a plan. The service runs with the plan's
patch under a load that rises and falls, while Serve is asked for its replicas. Then the same arrivals are replayed in
the simulation. Prints how often the numbers of replicas agree, and draws them.
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
from loadtests.photo_mix import photo_mix
from loadtests.service import ROOT, Service, detector, running, shipped, status
from serve_app.ops import serve_config

# YAML to merge over serve_config.yaml.
FIXED_TIME = "applications: [{name: recognition, import_path: 'loadtests.capacity.fixed_time_engine:build'}]"
POLL_S = 0.5
Seen = list[tuple[float, int, int]]  # (seconds, wanted, running)


async def observed(service: Service, arrivals: list[float], length: float) -> tuple[list[clients.Asked], Seen]:
    """Sends the requests, and asks Serve for its replicas every POLL_S."""
    seen: Seen = []
    began = time.monotonic()

    async def watch() -> None:
        while time.monotonic() - began < length:
            ingress = (await asyncio.to_thread(status, service))["deployments"]["Ingress"]
            up = sum(replica["state"] == "RUNNING" for replica in ingress["replicas"])
            seen.append((time.monotonic() - began, ingress["target_num_replicas"], up))
            await asyncio.sleep(POLL_S)

    asked, _ = await asyncio.gather(clients.offer(service.url, photo_mix(), arrivals), watch())
    return asked, seen


def cold_start(seen: Seen) -> float:
    """Median seconds from wanted to running over all added replicas; 0 when none was added."""
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
    """The value of a step function at each moment."""
    index = np.searchsorted([seconds for seconds, _ in series], moments, side="right") - 1
    return np.array([float(value) for _, value in series])[np.clip(index, 0, None)]


def main(args: argparse.Namespace) -> None:
    """Runs both, prints their agreement and draws it. Raises NotStarted, Unreachable, OSError."""
    measured = curve.read(args.curve)
    most = measured.station().most
    made = sizing.make(measured, 2.2 * most, args.p95_ms, availability="none", low_rps=0.3 * most)
    patch = made.serve()
    ingress = detector(patch)
    ingress["autoscaling_config"]["downscale_delay_s"] = args.downscale_delay_s
    scaling = ingress["autoscaling_config"]
    ingress["ray_actor_options"] = {"num_cpus": 0.3}  # all replicas must fit on this machine
    content = serve_config.merged(shipped(FIXED_TIME), patch)
    trace = Trace((0, 60, 200, 380), (0.3 * most, 2.2 * most, 0.3 * most))
    arrivals = trace.arrivals(np.random.default_rng(args.seed))
    with running(content) as service:
        asked, real = uvloop.run(observed(service, arrivals.tolist(), trace.length))
    delays = Delays(replica_s=cold_start(real), ask_s=0, node_s=0, image_s=0)
    rng, station = np.random.default_rng(args.seed), dataclasses.replace(measured.station(), room=made.room)
    replayed = Cluster(station, Autoscaler(scaling), delays, made.replicas, 1, rng).run(arrivals, trace.length)
    report(real, replayed.moments, trace.length)
    served = np.array([(one.sent, one.done - one.sent) for one in asked if one.status == HTTPStatus.OK]).T
    print_latency("Serve", served[0], served[1], len(asked) - len(served[0]))
    print_latency("simulated", replayed.outcome.sent, replayed.outcome.latency, len(replayed.outcome.refused))
    planned = f"planned {made.fewest} to {made.replicas} replicas, p95 {made.p95:.0f} ms of {made.p95_ms:g}"
    print(f"cold start {delays.replica_s:.1f} s; {planned}")
    plots.agreement(real, replayed.moments, trace, args.out / "agreement.png")


def print_latency(name: str, sent: Array, latency: Array, refused: int) -> None:
    """Prints latencies of all requests, and of 140 s to 200 s: the end of the high load, when all replicas run."""
    high = latency[(sent >= 140) & (sent < 200)]
    p50, p95, p95_high = (1000 * float(x) for x in (*np.percentile(latency, [50, 95]), np.percentile(high, 95)))
    print(f"{name}: p50 {p50:.0f} ms, p95 {p95:.0f} ms, p95 from 140 s to 200 s {p95_high:.0f} ms; {refused} refused")


def report(real: Seen, simulated: list[Moment], length: float) -> None:
    """Prints how often the numbers of replicas agree, and when each changes."""
    moments = np.arange(0, length, POLL_S)
    ran = step_at([(seconds, up) for seconds, _, up in real], moments)
    simulation = step_at([(moment.seconds, moment.running) for moment in simulated], moments)
    agree, apart = np.mean(ran == simulation), np.max(np.abs(ran - simulation))
    print(f"the same number of replicas in {agree:.0%} of the time, never more than {apart:g} apart; replica-seconds "
          f"{simulation.sum() / ran.sum() - 1:+.1%}")  # fmt: skip
    for name, values in (("Serve", ran), ("simulated", simulation)):
        changes = np.flatnonzero(np.diff(values)) + 1
        print(f"{name}: {values[0]:g}, " + ", ".join(f"{values[n]:g} at {moments[n]:.0f} s" for n in changes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = ROOT / "build" / "capacity"
    parser.add_argument("--curve", type=Path, default=out / "fixed_time.json", help="curve of a FIXED_TIME replica")
    parser.add_argument("--p95-ms", type=float, default=1000.0)
    parser.add_argument("--downscale-delay-s", type=float, default=30.0, help="shipped: ten minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=out)
    main(parser.parse_args())
