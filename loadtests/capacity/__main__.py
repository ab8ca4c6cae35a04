"""`python -m loadtests.capacity measure | plan | replay | batch`: plans replicas, nodes and cost for a load.

measure --out CURVE                                   raises the load on one replica until it no longer keeps up
plan --curve CURVE --peak-rps 40 --p95-ms 300         computes sizes, settings and cost; writes patches and a picture
replay --curve CURVE … --trace daily                  simulates a day with that plan: when it misses the objective
batch --summary DEST/_summary.json --photos … --hours … nodes and cost of a batch job
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import time
from pathlib import Path

import numpy as np

from loadtests.capacity import bulk, curve, plots, sizing, sweep, trace
from loadtests.capacity.autoscaler import Autoscaler
from loadtests.capacity.plan import Plan
from loadtests.capacity.replay import Cluster, Delays, Replayed
from loadtests.load.slo import Objective
from loadtests.photo_mix import photo_mix
from loadtests.service import ROOT, running
from serve_app.batch.price import Instance

OUT = ROOT / "build" / "capacity"


def measure(args: argparse.Namespace) -> int:
    """Starts the service, and measures and writes its curve. Returns the exit code."""
    content = sweep.fixed(args.difference, args.replicas)
    with running(content) as service:
        found = sweep.measure(content, service, photo_mix(args.photos), seconds=args.seconds, rounds=args.rounds)
    curve.write(found, args.out)
    print(f"at most {found.station().most:.1f} photos/s per replica; wrote {args.out}")
    return 0


def planned(args: argparse.Namespace) -> Plan:
    """The cheapest plan of all curves. Raises Unreachable when no curve gives one, ValueError, OSError."""
    instances = args.instance or [None]
    if len(instances) not in (1, len(args.curve)):
        raise ValueError("needs one --instance for all curves, or one for each")
    made, refused = [], []
    for path, instance in zip(args.curve, instances * (len(args.curve) // len(instances)), strict=True):
        try:
            made.append(
                sizing.make(
                    curve.read(path), args.peak_rps, args.p95_ms,
                    availability=args.availability, instance=instance, low_rps=args.low_rps,
                )
            )  # fmt: skip
        except sizing.Unreachable as error:
            refused.append(f"{path}: {error}")
    if not made:
        raise sizing.Unreachable("\n".join(refused))
    return min(made, key=lambda one: (one.nodes * (one.instance.hourly if one.instance else 1.0), one.p95.middle))


def show(args: argparse.Namespace) -> int:
    """Prints the plan; writes its patches and its picture. Returns the exit code."""
    made = planned(args)
    for what, value in made.rows():
        print(f"{what:42s} {value}")
    written = made.write(args.out)
    plots.plan(made, args.out / "plan.png")
    print("\n".join(f"wrote {path}" for path in [*written, args.out / "plan.png"]))
    return 0


def replay(args: argparse.Namespace) -> int:
    """Simulates a trace with the plan. Returns 1 when the objective is missed in more than `--breaches` of the time."""
    made = planned(args)
    generated = trace.GENERATED[args.trace](args.peak_rps, args.hours * 3600) if args.trace in trace.GENERATED else None
    load = generated or trace.read(Path(args.trace))
    delays = Delays(args.replica_s, Delays.ask_s, args.node_s, args.image_s)
    began = time.perf_counter()
    replayed = replayed_of(made, load, delays, args.seed)
    objective = Objective(args.p95_ms, min_requests=0)
    count = len(replayed.outcome.latency) + len(replayed.outcome.refused)
    print(f"{count:,} requests in {load.length / 3600:g} h simulated in {time.perf_counter() - began:.0f} s")
    breaches = replayed.breaches(objective)
    for start, end, why in breaches:
        print(f"missed from {clock(start)} to {clock(end)}: {why[0]}")
    part = sum(end - start for start, end, _ in breaches) / load.length
    replicas = [moment.running for moment in replayed.moments]
    print(f"objective missed in {part:.2%} of the time, {len(replayed.outcome.refused):,} requests refused")
    print(f"replicas {min(replicas)} to {max(replicas)}, {np.mean(replicas):.1f} on average; ", end="")
    cost = f"cost {replayed.node_hours * made.instance.hourly:,.2f}" if made.instance else "no cost without --instance"
    print(f"{replayed.node_hours:.1f} node hours, {cost}")
    plots.replay(replayed, load, objective, args.out / "replay.png")
    trace.write(load, args.out / "trace.csv")
    print(f"wrote {args.out / 'replay.png'} and {args.out / 'trace.csv'}")
    return int(part > args.breaches)


def batch(args: argparse.Namespace) -> int:
    """Prints the plan of a batch job. Returns the exit code."""
    for what, value in bulk.read(args.summary, args.photos, args.hours, args.instance).rows():
        print(f"{what:20s} {value}")
    return 0


def replayed_of(made: Plan, load: trace.Trace, delays: Delays, seed: int) -> Replayed:
    """Simulates the plan under a load."""
    (ingress,) = made.serve()["applications"][0]["deployments"]
    rng = np.random.default_rng(seed)
    autoscaler = Autoscaler(ingress["autoscaling_config"])
    station = dataclasses.replace(made.curve.station(), room=made.room)
    cluster = Cluster(station, autoscaler, delays, made.curve.replicas, made.fewest_nodes, rng)
    return cluster.run(load.arrivals(rng), load.length)


def clock(seconds: float) -> str:
    """Seconds as HH:MM."""
    return f"{int(seconds // 3600):02d}:{int(seconds % 3600 // 60):02d}"


def parsed() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure", help="measures the curve of a replica")
    one.add_argument("--out", type=Path, default=OUT / "curve.json")
    one.add_argument("--difference", default="", help="YAML merged over serve_config.yaml, such as an overlay's")
    one.add_argument("--replicas", type=int, default=1, help="replicas on this node, such as four on a GPU")
    one.add_argument("--photos", type=Path, help="folder of JPEGs")
    one.add_argument("--seconds", type=float, default=20.0, help="duration of each load")
    one.add_argument("--rounds", type=int, default=2)
    one.set_defaults(do=measure)
    sizing = argparse.ArgumentParser(add_help=False)
    sizing.add_argument("--curve", type=Path, nargs="+", default=[OUT / "curve.json"], help="the cheapest is taken")
    sizing.add_argument("--peak-rps", type=float, required=True)
    sizing.add_argument("--p95-ms", type=float, required=True)
    sizing.add_argument("--low-rps", type=float, help="load of the quietest hour; a quarter of the peak when not given")
    sizing.add_argument("--instance", type=Instance.parse, nargs="+", metavar="TYPE:PRICE/h")
    sizing.add_argument("--availability", choices=["none", "node", "zone"], default="node", help="what may be lost")
    sizing.add_argument("--out", type=Path, default=OUT)
    commands.add_parser("plan", parents=[sizing], help="computes sizes, settings, cost, patches").set_defaults(do=show)
    two = commands.add_parser("replay", parents=[sizing], help="simulates a trace with the plan")
    two.add_argument("--trace", default="daily", help="daily, flash-crowd, or a CSV of seconds,requests_per_s")
    two.add_argument("--hours", type=float, default=24.0, help="length of a generated trace")
    two.add_argument("--replica-s", type=float, default=Delays.replica_s, help="cold start of a replica")
    two.add_argument("--node-s", type=float, default=Delays.node_s, help="until a new node is ready")
    two.add_argument("--image-s", type=float, default=Delays.image_s, help="until it has pulled the image")
    two.add_argument("--breaches", type=float, default=0.01, help="share of the time that may miss the objective")
    three = commands.add_parser("batch", help="nodes and cost of a batch job")
    three.add_argument(
        "--summary", type=Path, required=True, help="of a run of `python -m serve_app batch` on such a node"
    )
    three.add_argument("--photos", type=int, required=True)
    three.add_argument("--hours", type=float, required=True)
    three.add_argument("--instance", type=Instance.parse, metavar="TYPE:PRICE/h")
    three.set_defaults(do=batch)
    two.add_argument("--seed", type=int, default=0)
    two.set_defaults(do=replay)
    return parser.parse_args()


if __name__ == "__main__":
    args = parsed()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # hides the autoscaler's decisions in a replay
    try:
        sys.exit(args.do(args))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
