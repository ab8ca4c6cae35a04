"""`make drill`: changes and breaks the service under traffic, and checks every answer.

Exits with 1 if a request was lost, late, wrong or mislabelled. With `--url` and `--hook` the only event is your own
command, such as the upgrade of a RayService on a cluster; then it also exits with 1 if the share of refusals rises.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from loadtests.drills.events import local
from loadtests.drills.half_failures import EVENTS
from loadtests.drills.observation import content_of, observe
from loadtests.traffic import Row, Traffic
from serve_app.weights.identity import BUNDLED

# Reported, but not a failure: the requests that a killed HAProxy held are lost. Its keeper starts another one at once.
KNOWN_LIMITATIONS = {"kill HAProxy", "freeze HAProxy for good"}
# Through a load balancer, at most 12 requests a second: its firewall allows one address 20 (terraform/variables.tf).
REMOTE_CLIENTS, REMOTE_RATE, REMOTE_PAUSE_S = 4, 4.0, 0.5


def main(args: argparse.Namespace) -> bool:
    """Runs the chosen events; true when nothing was lost, late, wrong or mislabelled."""
    totals: Counter[str] = Counter()
    bad: list[Row] = []
    if args.url:
        traffic = Traffic(args.url, content_of(), {"Authorization": f"Bearer {args.key}"} if args.key else {})
        with traffic.flowing(REMOTE_CLIENTS, REMOTE_RATE, REMOTE_PAUSE_S):
            for _ in range(args.times):
                bad += observe(traffic, "hook", lambda: hook(args.hook), refusals=True)
    else:
        with local(difference=args.difference, weights=args.weights) as operator:
            traffic = Traffic(operator.service.url, content_of())
            events = operator.events | {name: partial(event, operator) for name, event in EVENTS.items()}
            chosen = {n: e for n, e in events.items() if not args.events or n in args.events}
            with traffic.flowing():
                for name in sequence(list(chosen), args):
                    found = observe(traffic, name, chosen[name])
                    totals[name] += len(found)
                    bad += found if name not in KNOWN_LIMITATIONS else []
    print(f"{len(traffic.rows)} requests; lost, late, wrong or of unknown weights: {len(bad)}")
    for name, count in (+totals).items():
        print(f"    {name}: {count}" + (", a known limitation" if name in KNOWN_LIMITATIONS else ""))
    return bool(traffic.rows) and not bad


def sequence(names: list[str], args: argparse.Namespace) -> Iterator[str]:
    """Yields each event `args.times` times in turn or, with `args.minutes`, random events for that long."""
    if not args.minutes:
        yield from names * args.times
        return
    seed = args.seed if args.seed is not None else random.randrange(10**6)
    print(f"seed {seed}", flush=True)
    chosen, end = random.Random(seed), time.monotonic() + 60 * args.minutes
    while time.monotonic() < end:
        yield chosen.choice(names)


def hook(command: str) -> None:
    """Runs the operator's command. Raises CalledProcessError."""
    subprocess.run(command, shell=True, check=True)  # noqa: S602 - the operator's own command line


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="how often each event runs")
    parser.add_argument("--events", nargs="*", help="run only these events")
    parser.add_argument("--minutes", type=float, help="run random events for so many minutes instead")
    parser.add_argument("--seed", type=int, help="seed of the random order")
    parser.add_argument("--difference", default="", help="YAML to merge over serve_config.yaml, such as that of a GPU")
    parser.add_argument("--weights", type=Path, default=BUNDLED, help="a .pt of any task, to publish and to swap")
    parser.add_argument("--url", help="URL of a service that runs already")
    parser.add_argument("--hook", default="true", help="command that upgrades it; must return when the upgrade is done")
    parser.add_argument("--key", help="API key")
    sys.exit(not main(parser.parse_args()))
