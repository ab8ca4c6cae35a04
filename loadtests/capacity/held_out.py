"""`python -m loadtests.capacity.held_out`: how well a curve of low and middle loads predicts loads it has not seen.

Runs all loads one after the other in short rounds, because a machine's speed drifts. The curve sees only the low and
middle loads of one replica. It predicts p95 at the other loads and the largest rate; with `--replicas`, also those of
more replicas. Prints a table with one line for each prediction.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from http import HTTPStatus
from typing import NamedTuple

import numpy as np
import uvloop

from loadtests import clients
from loadtests.capacity.curve import QUIET, Curve
from loadtests.capacity.plan import Interval
from loadtests.capacity.queueing import allen_cunneen, simulate
from loadtests.capacity.sizing import TRUSTED, interval
from loadtests.capacity.station import Station
from loadtests.capacity.sweep import Offered, fixed, hardware, offered, step_of
from loadtests.photo_mix import photo_mix
from loadtests.service import detector, running

SEEN = (0.2, 0.35, 0.5, 0.65)  # shares of the largest rate in the curve
UNSEEN = (0.43, 0.58, 0.7, TRUSTED)  # shares that it predicts
CLIENTS = 32  # closed-loop clients that measure the largest rate of one replica
DRAWS = 20


class Row(NamedTuple):
    """One measurement with its predictions, by simulation and by formula."""

    what: str
    measured: float
    simulated: Interval
    formula: float


def runs(
    args: argparse.Namespace, replicas: int, shares: tuple[float, ...], most: float
) -> tuple[list[Offered], float, float]:
    """Returns the runs, the largest rate of all replicas, and about that of one: `most`, or measured if that is 0."""
    photos, found, rates = photo_mix(), list[Offered](), list[float]()
    rng = np.random.default_rng(args.seed)
    content = [photo.content for photo in photos]
    with running(fixed(args.difference, replicas)) as service:
        uvloop.run(clients.offer(service.url, photos, np.arange(20) * 0.3))
        most = most or clients.measure(service.url, content, CLIENTS, 3 * args.seconds, service.pid).rate
        for _ in range(args.rounds):
            for share in shares:
                rate = share * most * replicas
                found.append(offered(service, photos, rate, args.seconds, rng))
            rates.append(clients.measure(service.url, content, CLIENTS * replicas, 4, service.pid).rate)
    quiet = [run for run in found if run.others <= QUIET]
    left_out = f"{len(found) - len(quiet)} of {len(found)} runs left out"
    print(f"{left_out}: other processes used more than {QUIET:.0%} of the machine")
    return quiet, statistics.median(rates), most


def curve_of(found: list[Offered], args: argparse.Namespace) -> Curve:
    """The curve of these runs of one replica."""
    user_config = detector(fixed(args.difference, 1))["user_config"]
    steps = [step_of(run, args.seconds) for run in found]
    nothing: dict[str, str] = {}
    return Curve(
        measured="", hardware=hardware(), engine=nothing, versions=nothing, mix={}, replicas=1, steps=steps,
        **user_config,
    )  # fmt: skip


def compared(curve: Curve, replicas: int, found: list[Offered], seed: int) -> Iterator[Row]:
    """p95 of each load, simulated with the real arrivals. Takes the median of the rounds, because one may be slow."""
    for rate in sorted({run.rate for run in found}):
        rounds = [run for run in found if run.rate == rate]
        measured = statistics.median(p95(run.asked) for run in rounds)
        rng = np.random.default_rng(seed)
        each = [foretold(curve.station(rng), replicas, rounds, rng) for _ in range(DRAWS)]
        middle = statistics.median(foretold(curve.station(), replicas, rounds, rng) for _ in range(DRAWS))
        actual = statistics.median(len(run.arrivals) / run.arrivals[-1] for run in rounds)
        formula = allen_cunneen(curve.station(), replicas, float(actual)) * 1000
        yield Row(f"p95 at {actual:.1f}/s, {of(replicas)}, ms", measured, interval(each, middle), formula)


def p95(asked: list[clients.Asked]) -> float:
    """The p95 of the answered requests, in milliseconds."""
    return float(np.percentile([one.done - one.sent for one in asked if one.status == HTTPStatus.OK], 95)) * 1000


def foretold(station: Station, replicas: int, rounds: list[Offered], rng: np.random.Generator) -> float:
    """The simulated p95 in milliseconds, the median of the rounds."""
    return statistics.median(simulate(station, replicas, run.arrivals, rng).percentile() * 1000 for run in rounds)


def largest(curve: Curve, replicas: int, measured: float, seed: int) -> Row:
    """The largest rate of so many replicas."""
    rng = np.random.default_rng(seed)
    most, each = curve.station().most, [curve.station(rng).most * replicas for _ in range(DRAWS)]
    return Row(f"largest rate, {of(replicas)}, photos/s", measured, interval(each, most * replicas), most * replicas)


def of(replicas: int) -> str:
    """The number of replicas in words."""
    return f"{replicas} replica{'s' * (replicas > 1)}"


def main(args: argparse.Namespace) -> None:
    """Measures, predicts, and prints the table."""
    found, rate, most = runs(args, 1, SEEN + UNSEEN, 0.0)
    low = [run for run in found if any(np.isclose(run.rate, share * most) for share in SEEN)]
    curve = curve_of(low, args)
    rows = list(compared(curve, 1, [run for run in found if not any(run is one for one in low)], args.seed))
    rows.append(largest(curve, 1, rate, args.seed))
    for replicas in range(2, args.replicas + 1):
        more, rate, _ = runs(args, replicas, UNSEEN, most)
        rows += [*compared(curve, replicas, more, args.seed), largest(curve, replicas, rate, args.seed)]
    print("| what | measured | simulated (interval) | error | Allen-Cunneen | error |\n|---|---|---|---|---|---|")
    for what, measured, simulated, formula in rows:
        off, other = simulated.middle / measured - 1, formula / measured - 1
        print(f"| {what} | {measured:.1f} | {simulated:.1f} | {off:+.0%} | {formula:.1f} | {other:+.0%} |")
    errors = [abs(row.simulated.middle / row.measured - 1) for row in rows]
    within = sum(row.simulated.low <= row.measured <= row.simulated.high for row in rows)
    print(f"median error {statistics.median(errors):.1%}, worst {max(errors):.1%}, "
          f"{within} of {len(rows)} within the interval")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--difference", default="", help="YAML merged over serve_config.yaml")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=15.0, help="duration of each load in each round")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
