"""`make drill`: changes and breaks the service under traffic, and counts what clients lost: nothing, or exit 1.

With `--url` and `--hook` the event is a command of yours instead, such as the upgrade of a RayService on a cluster.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator

from loadtests.events import local
from loadtests.mix import resized
from loadtests.traffic import Row, Traffic, stall, tail
from serve_app import photos

SETTLE_S = 3.0  # of traffic after each event, in which it may still show
BAD = ("lost", "late", "wrong")
# Nothing on one machine stands before HAProxy: what it holds dies with it; it is back in 4-6 s. Told, not judged.
HOLES = {"kill HAProxy", "kill HAProxy's manager"}


def observe(traffic: Traffic, name: str, event: Callable[[], None], live: Callable[[], str]) -> list[Row]:
    """Traffic during one event, as a line; returns the rows that are bad."""
    began, before = time.monotonic(), live()
    event()
    settled = time.monotonic()
    time.sleep(SETTLE_S)
    known = {before, live()}
    rows = traffic.between(began, time.monotonic())
    bad = [r for r in rows if r.verdict in BAD or (r.verdict == "answered" and r.sha256 not in known)]
    seen = Counter(r.verdict for r in rows)
    unlabelled = len(bad) - sum(seen[v] for v in BAD)
    latency = tail([r for r in rows if r.verdict == "answered"])
    print(
        f"{name:34s} sent {len(rows):5d}  answered {seen['answered']:5d}  refused {seen['refused']:4d}  "
        f"lost {seen['lost']:3d}  late {seen['late']:3d}  wrong {seen['wrong']:3d}  wrong version {unlabelled:3d}  "
        f"p95 {latency:5.2f} s  longest without an answer {stall(rows, began, time.monotonic()):5.2f} s  "
        f"settled {settled - began:5.1f} s",
        flush=True,
    )
    for row in bad[:8]:
        print(f"    {row.verdict} after {row.done - row.sent:.2f} s: {row.detail[:300]}", flush=True)
    return bad


def content_of() -> list[bytes]:
    """Two small photos, and a larger one of 0.85 MB; of more than 1 MB HAProxy keeps no copy."""
    return [photos.bus(), photos.zidane(), resized(photos.bus(), 2)]


def main(args: argparse.Namespace) -> bool:
    """Runs the chosen events so often; true when nothing was lost, late, wrong or of unknown weights."""
    totals: Counter[str] = Counter()
    bad: list[Row] = []
    if args.url:
        traffic = Traffic(args.url, content_of(), {"Authorization": f"Bearer {args.key}"} if args.key else {})
        with traffic.flowing():
            for _ in range(args.times):
                bad += observe(traffic, "hook", lambda: hook(args.hook), lambda: sha256(traffic))
    else:
        with local() as operator:
            traffic = Traffic(operator.service.url, content_of())
            chosen = {n: e for n, e in operator.events.items() if not args.events or n in args.events}
            with traffic.flowing():
                for name in sequence(list(chosen), args):
                    found = observe(traffic, name, chosen[name], lambda: sha256(traffic))
                    totals[name] += len(found)
                    bad += found if name not in HOLES else []
    print(f"{len(traffic.rows)} requests; lost, late, wrong or of unknown weights: {len(bad)}")
    for name, count in (+totals).items():
        print(f"    {name}: {count}" + (", a known hole" if name in HOLES else ""))
    return bool(traffic.rows) and not bad


def sequence(names: list[str], args: argparse.Namespace) -> Iterator[str]:
    """Each event so many times in turn; or, for so many minutes, whatever the seed says."""
    if not args.minutes:
        yield from names * args.times
        return
    seed = args.seed if args.seed is not None else random.randrange(10**6)
    print(f"seed {seed}", flush=True)
    chosen, end = random.Random(seed), time.monotonic() + 60 * args.minutes
    while time.monotonic() < end:
        yield chosen.choice(names)


def hook(typed: str) -> None:
    """Raises CalledProcessError."""
    subprocess.run(typed, shell=True, check=True)  # noqa: S602 - the operator's own command line


def sha256(traffic: Traffic) -> str:
    """Whose weights answered last."""
    return next((row.sha256 for row in reversed(traffic.rows) if row.verdict == "answered"), "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--events", nargs="*", help="only these")
    parser.add_argument("--minutes", type=float, help="events in random order instead, for so long")
    parser.add_argument("--seed", type=int, help="of that order")
    parser.add_argument("--url", help="a service that runs elsewhere")
    parser.add_argument("--hook", default="true", help="the command that upgrades it; returns when that is done")
    parser.add_argument("--key", help="API key")
    sys.exit(not main(parser.parse_args()))
