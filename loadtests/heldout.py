"""`python -m loadtests.heldout`: how well low and middle loads of one replica foretell what was not measured.

Loads in turn, in short rounds, as a machine is not the same all the time; the curve sees the low and middle ones of one
replica only. Then p95 at the others, the largest rate, and with `--replicas` the same with more of them. Prints a
table, a line for each prediction.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator

import numpy as np
import uvloop

from loadtests import clients, trace
from loadtests.curve import Curve, fixed, offered, step_of
from loadtests.mix import mix
from loadtests.queueing import Station, allen_cunneen, simulate
from loadtests.service import detector, running

SEEN = (0.2, 0.35, 0.5, 0.65)  # of the largest rate
UNSEEN = (0.43, 0.58, 0.75, 0.85)
CLIENTS = 32  # closed, at all times: the largest rate
Run = tuple[float, trace.Times, list[clients.Asked]]  # offered, arrivals, answers


def runs(
    args: argparse.Namespace, replicas: int, shares: tuple[float, ...], most: float
) -> tuple[list[Run], float, float]:
    """What came of the loads, and the largest rate; `most` is about that of one replica, 0 when unknown."""
    photos, found, rates = mix(), list[Run](), list[float]()
    rng = np.random.default_rng(args.seed)
    content = [photo.content for photo in photos]
    with running(fixed(args.difference, replicas)) as service:
        uvloop.run(clients.offer(service.url, photos, np.arange(20) * 0.3))
        most = most or clients.measure(service.url, content, CLIENTS, 8, service.pid).rate
        for _ in range(args.rounds):
            for share in shares:
                rate = share * most * replicas
                found.append((rate, *offered(service, photos, rate, args.seconds, rng)))
            rates.append(clients.measure(service.url, content, CLIENTS * replicas, 8, service.pid).rate)
    return found, statistics.mean(rates), most


def curve_of(found: list[Run], args: argparse.Namespace) -> Curve:
    """Of the loads that may be seen."""
    user_config = detector(fixed(args.difference, 1))["user_config"]
    steps = [step_of(asked, rate, args.seconds) for rate, _, asked in found]
    nothing: dict[str, str] = {}
    return Curve(
        measured="", hardware={}, engine=nothing, versions=nothing, mix={}, replicas=1, steps=steps,
        **user_config,
    )  # fmt: skip


def compared(station: Station, replicas: int, found: list[Run], seed: int) -> Iterator[tuple[str, float, float, float]]:
    """(what, measured, simulated, by Allen-Cunneen), for each load over all rounds."""
    for rate in sorted({rate for rate, *_ in found}):
        rounds = [(arrivals, asked) for offered, arrivals, asked in found if offered == rate]
        measured = np.percentile([one.done - one.sent for _, asked in rounds for one in asked], 95) * 1000
        rng = np.random.default_rng(seed)
        simulated = [simulate(station, replicas, arrivals, rng).latency for arrivals, _ in rounds * 10]
        by_formula = allen_cunneen(station, replicas, np.mean([len(a) / a[-1] for a, _ in rounds]).item())
        name = f"p95 at {rate:.1f}/s, {replicas} replica{'s' * (replicas > 1)}, ms"
        yield name, float(measured), float(np.percentile(np.concatenate(simulated), 95)) * 1000, by_formula * 1000


def main(args: argparse.Namespace) -> None:
    """Prints the table."""
    found, rate, most = runs(args, 1, SEEN + UNSEEN, 0.0)
    low = [run for run in found if any(np.isclose(run[0], share * most) for share in SEEN)]
    station = curve_of(low, args).station()
    rows = list(compared(station, 1, [run for run in found if not any(run is one for one in low)], args.seed))
    rows.append(("largest rate, 1 replica, photos/s", rate, station.most, station.most))
    for replicas in range(2, args.replicas + 1):
        more, rate, _ = runs(args, replicas, UNSEEN, most)
        rows += compared(station, replicas, more, args.seed)
        rows.append((f"largest rate, {replicas} replicas, photos/s", rate, replicas * station.most, np.nan))
    errors = []
    print("| what | measured | simulated | error | Allen-Cunneen | error |\n|---|---|---|---|---|---|")
    for what, measured, simulated, formula in rows:
        off, other = simulated / measured - 1, formula / measured - 1
        errors.append(abs(off))
        print(f"| {what} | {measured:.1f} | {simulated:.1f} | {off:+.0%} | {formula:.1f} | {other:+.0%} |")
    print(f"median error {statistics.median(errors):.1%}, worst {max(errors):.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--difference", default="", help="YAML laid over serve_config.yaml")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
