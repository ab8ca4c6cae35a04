"""Runs the servers in turn, each with Ultralytics' steps and with this service's engine, and prints a table.

The packages of the others are in an environment of their own, beside which the packages of this one are found.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

from loadtests import clients
from loadtests.clients import Measured
from loadtests.compare.recogniser import ENGINE, WEIGHTS
from loadtests.photo_mix import photos_of
from loadtests.service import ROOT, NotStarted, config, free_port, running
from serve_app.weights.identity import pin_file

PEERS = ROOT / ".venv/peers/bin/python"
START_S = 120


class Peer(NamedTuple):
    """How one of the others is started and called."""

    module: str
    options: tuple[str, ...]  # the last one takes its port
    path: str
    json: bool  # whether it takes the photo in JSON


OTHERS = {
    "FastAPI": Peer("fastapi_server", (), "/predict", json=False),
    "LitServe": Peer("litserve_server", (), "/predict", json=True),
    "mosec": Peer("mosec_server", ("--address", "127.0.0.1", "--timeout", "60000", "--port"), "/inference", json=False),
}


class Target(NamedTuple):
    """A running server."""

    url: str
    pid: int
    path: str
    json: bool


@contextmanager
def started(peer: Peer, engine: str, weights: str, photo: bytes) -> Iterator[Target]:
    """One of the others, once it answers. Raises NotStarted."""
    port = free_port()
    env = os.environ | {ENGINE: engine, WEIGHTS: weights, "PYTHONPATH": str(ROOT)}
    command = [str(PEERS), "-m", f"loadtests.compare.{peer.module}", *peer.options, str(port)]
    with tempfile.TemporaryFile("w+") as log:
        process = psutil.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        target = Target(f"http://127.0.0.1:{port}", process.pid, peer.path, peer.json)
        end = time.monotonic() + START_S
        try:
            while not answers(target, photo):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise NotStarted(f"{peer.module} does not answer:\n{log.read()}")
                time.sleep(0.5)
            yield target
        finally:
            if process.is_running():
                every = [process, *process.children(recursive=True)]
                process.terminate()
                for left in psutil.wait_procs(every, 10)[1]:
                    left.kill()
                process.wait(10)


@contextmanager
def this_service(weights: str) -> Iterator[Target]:
    """This one, as it ships. Raises NotStarted."""
    with running(config(free_port(), weights=weights)) as service:
        yield Target(service.url, service.pid, "/v1/predict", json=False)


def body(target: Target, photo: bytes) -> tuple[bytes, str]:
    """The body that a server takes, and its media type."""
    if not target.json:
        return photo, "image/jpeg"
    return json.dumps({"image": base64.b64encode(photo).decode()}).encode(), "application/json"


def answers(target: Target, photo: bytes) -> bool:
    """Whether the server finds something in a photo."""
    content, media_type = body(target, photo)
    try:
        answer = httpx.post(target.url + target.path, content=content, headers={"Content-Type": media_type}, timeout=60)
    except httpx.TransportError:
        return False
    return answer.is_success and bool(answer.json()["results"])


def memory(pid: int) -> float:
    """Megabytes that a process and its children hold, pages they share counted once each by proportion."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(process.memory_full_info().pss for process in processes) / 1e6


def measured(target: Target, photos: list[bytes], counts: list[int], seconds: float) -> tuple[list[Measured], float]:
    """One measurement for each number of clients, and the memory after the last."""
    contents = [body(target, photo) for photo in photos]
    ask = partial(clients.measure, target.url, [content for content, _ in contents], pid=target.pid, path=target.path)
    found = [ask(count=count, seconds=seconds, media_type=contents[0][1]) for count in counts]
    return found, memory(target.pid)


def main(photos: list[bytes], weights: str, counts: list[int], seconds: float, rounds: int) -> None:
    """Prints each measurement, then medians. Raises NotStarted."""
    targets = {"this service": partial(this_service, weights)}
    for name, peer in OTHERS.items():
        for engine in ("ultralytics", "ours"):
            targets[f"{name}, {engine}"] = partial(started, peer, engine, weights, photos[0])
    found: dict[str, list[tuple[list[Measured], float]]] = {name: [] for name in targets}
    for _ in range(rounds):
        for name, start in targets.items():
            with start() as target:
                found[name].append(measured(target, photos, counts, seconds))
            for count, one in zip(counts, found[name][-1][0], strict=True):
                print(f"{name:24s} {count:4d} clients {one}", flush=True)
    print("\nserver, engine | clients | images/s | p50 | p99 | errors | CPU-ms | MB")
    print("|".join(["---"] * 8))
    for name, several in found.items():
        for i, count in enumerate(counts):
            each = [measurements[i] for measurements, _ in several]
            rate, p50, p99 = (statistics.median(getattr(m, k) for m in each) for k in ("rate", "p50", "p99"))
            cpu = statistics.median(sum(v for k, v in m.cpu_ms.items() if k != clients.CLIENTS) for m in each)
            held = statistics.median(mb for _, mb in several)
            cells = (name, count, f"{rate:.1f}", f"{p50:.0f}", f"{p99:.0f}", sum(m.errors for m in each))
            print(*cells, f"{cpu:.0f}", f"{held:.0f}", sep=" | ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of JPEGs")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    main(photos_of(args.photos), pin_file(args.weights).uri, args.clients, args.seconds, args.rounds)
