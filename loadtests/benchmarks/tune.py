"""`make tune`: tries batch sizes and waits on the running service, and prints the best ones as a patch."""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import yaml

from loadtests import clients
from loadtests.photo_mix import photos_of
from loadtests.service import ROOT, Service, deploy, detector, free_port, running
from serve_app.ops import serve_config

SAME = 0.97  # a rate within 3 % of the best is as good: a smaller batch and a shorter wait then answer sooner


def apply(service: Service, content: dict[str, Any], user_config: dict[str, Any]) -> None:
    """Deploys a `user_config` and waits until the Detector uses it. Raises TimeoutError after 60 s."""
    seen = len(service.lines)
    detector(content)["user_config"] = user_config
    deploy(service, content)
    deadline = time.monotonic() + 60
    wanted = (
        f"max_batch_size={user_config['max_batch_size']} batch_wait_timeout_s={user_config['batch_wait_timeout_s']}"
    )
    while not any("user_config active" in line and wanted in line for line in service.lines[seen:]):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the Detector does not use {user_config} after 60 s")
        time.sleep(0.2)


def best(rates: dict[tuple[int, float], float]) -> tuple[int, float]:
    """The smallest batch size and wait whose rate is as good as the best, see SAME."""
    top = max(rates.values())
    return min(key for key, rate in rates.items() if rate >= SAME * top)


def main(args: argparse.Namespace) -> None:
    """Prints each measurement, then the patch."""
    content = serve_config.load(args.config)
    content["http_options"]["port"] = free_port()
    found: dict[tuple[int, float], list[float]] = {}
    with running(content) as service:
        start = detector(content)["user_config"]
        for _, (size, wait) in itertools.product(range(args.rounds), itertools.product(args.sizes, args.waits)):
            if size == 1 and wait > min(args.waits):
                continue  # a batch of one is full at once
            tried = start | {"max_batch_size": size, "batch_wait_timeout_s": wait}
            if tried != detector(content)["user_config"]:
                apply(service, content, tried)
            measured = clients.measure(service.url, photos_of(args.photos), args.clients, args.seconds, service.pid)
            found.setdefault((size, wait), []).append(measured.rate)
            print(f"batch {size:3d}  wait {wait * 1000:4.0f} ms ", measured, flush=True)
    size, wait = best({key: statistics.median(rates) for key, rates in found.items()})
    print(f"\n# {args.clients} clients, {args.rounds} rounds of {args.seconds:g} s, {time.strftime('%Y-%m-%d')}")
    patch = {"name": detector(content)["name"], "user_config": {"max_batch_size": size, "batch_wait_timeout_s": wait}}
    print(yaml.safe_dump([patch], sort_keys=False), end="")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=ROOT / "serve_config.yaml")
    parser.add_argument("--photos", type=Path, help="folder of JPEGs")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--waits", type=float, nargs="+", default=[0.0, 0.005])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args())
