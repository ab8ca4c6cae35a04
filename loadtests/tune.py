"""`make tune`: which batch size and wait suit this machine, tried on the running service. Prints a patch."""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import yaml

from loadtests import clients
from loadtests.mix import photos_of
from loadtests.service import ROOT, Service, deploy, detector, free_port, running
from serve_app import configuration

SAME = 0.97  # rates closer than this are the same: then a smaller batch and a shorter wait, which answer sooner


def apply(service: Service, content: dict[str, Any], user_config: dict[str, Any]) -> None:
    """Returns when the Detector has taken it."""
    seen = len(service.lines)
    detector(content)["user_config"] = user_config
    deploy(service, content)
    deadline = time.monotonic() + 60
    wanted = (
        f"max_batch_size={user_config['max_batch_size']} batch_wait_timeout_s={user_config['batch_wait_timeout_s']}"
    )
    while not any("user_config in force" in line and wanted in line for line in service.lines[seen:]):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{user_config} is not in force after 60 s")
        time.sleep(0.2)


def best(rates: dict[tuple[int, float], float]) -> tuple[int, float]:
    """The smallest batch and wait whose rate is as good as the best."""
    top = max(rates.values())
    return min(key for key, rate in rates.items() if rate >= SAME * top)


def main(args: argparse.Namespace) -> None:
    """Prints each try, then the patch."""
    content = configuration.load(args.config)
    content["http_options"]["port"] = free_port()
    found: dict[tuple[int, float], list[float]] = {}
    with running(content) as service:
        start = detector(content)["user_config"]
        for _, (size, wait) in itertools.product(range(args.rounds), itertools.product(args.sizes, args.waits)):
            if size == 1 and wait > min(args.waits):
                continue  # nothing to wait for
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
