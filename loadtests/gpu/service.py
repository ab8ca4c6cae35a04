"""`make bench-gpu-service`: the whole service on one GPU, beside the captured graph alone; then the drill's short form.

Needs Ray, and takes ten minutes at most. The replicas share the GPU, with all stages together in each, as in
kuberay/overlays/production. Prints where the service's CPU time goes. `--dry-run` does the same on the CPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from loadtests import clients
from loadtests.clients import CLIENTS, Measured
from loadtests.gpu.plan import MAX_PIXELS, Plan, median_ms
from loadtests.gpu.speed import graph_ms
from loadtests.photo_mix import photos_of
from loadtests.service import model, running, shipped
from serve_app.vision import image
from serve_app.vision.tasks.task import recognise

EVENTS = ("kill replica", "redeploy", "change batching", "swap weights", "refused weights", "scale to 3 and back")


def difference(share: float, dry: bool, **deployment: object) -> dict[str, Any]:
    """What differs from serve_config.yaml when each replica has a share of the GPU; in a dry run PyTorch on the CPU."""
    options = {"num_gpus": 0 if dry else share}
    ingress = {"name": "Ingress", "ray_actor_options": options, **deployment}
    args = {"engine": "torch"} if dry else {}
    return {"applications": [{"name": "recognition", "args": args, "deployments": [ingress]}]}


def shared(replicas: int, batch: int, dry: bool) -> dict[str, Any]:
    """The difference when so many replicas share the GPU and half of the cores are booked."""
    user_config = {"max_batch_size": batch, "batch_wait_timeout_s": 0.005}
    made = difference(1 / replicas, dry, num_replicas=replicas, user_config=user_config)
    made["applications"][0]["deployments"][0]["ray_actor_options"]["num_cpus"] = 0.5 * (os.cpu_count() or 1) / replicas
    return made


def alone(plan: Plan) -> float:
    """Prints what one thread does without Ray or HTTP; returns the graph's images/s at the largest batch."""
    engine, photos = plan.engine(), plan.encoded
    engine(plan.inputs(plan.most))
    rate = 1000 * plan.most / graph_ms(plan, engine, plan.most)
    network_input, letterbox = image.prepare(photos[0], plan.size, MAX_PIXELS)
    output = engine([network_input])[0]
    steps = {
        "JPEG → network input": median_ms(lambda: [image.prepare(p, plan.size, MAX_PIXELS) for p in photos], 1)
        / len(photos),
        "engine, one image": median_ms(lambda: engine([network_input]), 1),
        "candidates, NMS": median_ms(lambda: recognise(engine.task, output, letterbox, 0.25), 1),
    }
    print(f"the captured graph alone, batches of {plan.most}: {rate:,.0f} img/s; " + named(steps), flush=True)
    return rate


def named(ms: dict[str, float]) -> str:
    """Milliseconds by name."""
    return ", ".join(f"{name} {value:.2f} ms" for name, value in ms.items())


def serve(plan: Plan, replicas: int, args: argparse.Namespace, graph: float) -> None:
    """Prints the rates of the service with so many replicas, by number of clients."""
    content = shipped(yaml.safe_dump(shared(replicas, plan.most, plan.dry)), weights=str(args.weights.resolve()))
    started = time.perf_counter()
    with running(content) as service:
        assert plan.dry or model(service)["device"] == "cuda"
        print(f"\n{replicas} replicas, ready after {time.perf_counter() - started:.0f} s", flush=True)
        for count in sorted({1, args.clients * replicas}):
            processes = min(count, args.senders)
            measured = clients.measure_together(
                service.url, photos_of(args.photos), count, args.seconds, service.pid, processes=processes
            )
            print(f"{count:4d} clients  {measured}", flush=True)
    row(replicas, measured, graph)


def row(replicas: int, measured: Measured, graph: float) -> None:
    """Prints the share of the graph's rate, and the cores that the service and its clients have used."""
    cores = {name: ms * measured.rate / 1000 for name, ms in measured.cpu_ms.items()}
    service = sum(used for name, used in cores.items() if name != CLIENTS)
    print(
        f"{replicas} replicas: {measured.rate / graph:.3f} of the graph's rate; of {os.cpu_count()} cores the service "
        f"used {service:.1f}, its clients {cores.get(CLIENTS, 0):.1f}; an image costs "
        f"{service / measured.rate * 1000:.2f} CPU-ms",
        flush=True,
    )


def main(args: argparse.Namespace) -> bool:
    """Prints everything; false when the drill lost a request."""
    plan = Plan(args.weights, args.photos, None, 96 if args.dry_run else 640, args.batch, 0.4, (), args.dry_run)
    graph = alone(plan)
    for replicas in args.replicas:
        serve(plan, replicas, args, graph)
    if args.no_drill:
        return True
    command = [sys.executable, "-u", "-m", "loadtests.drills.drill", "--times", "1", "--events", *EVENTS]
    return (
        subprocess.run(
            [*command, "--difference", yaml.safe_dump(difference(0.25, args.dry_run))], check=False
        ).returncode
        == 0
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("models/default.pt"))
    parser.add_argument("--photos", type=Path, help="folder of JPEGs; two sample photos when not given")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--clients", type=int, default=16, help="for each replica")
    parser.add_argument("--senders", type=int, default=3, help="processes that send")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--no-drill", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU")
    sys.exit(not main(parser.parse_args()))
