"""`make drill-batch`: batch runs over S3 that are killed at random moments, in three ways each.

`driver` kills the command itself, which is then run again; `worker` kills the process of the network; `store` makes the
store unreachable for a while. Every run must end with exactly one row for each photo, equal to the row of an
undisturbed run. Otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow as pa
from pyarrow import parquet

from loadtests import s3_server
from loadtests.photo_mix import photos_of
from loadtests.service import ROOT, command, free_port
from serve_app.batch.storage import Storage
from serve_app.vision import sample_photos
from serve_app.weights.identity import BUNDLED, pin_file
from serve_app.weights.store import Store

EVENTS = ("driver", "worker", "store")
TRIES = 12  # of one command; Ray's own start may fail on a busy machine
GONE_S = 30


class Result(NamedTuple):
    """One run: how often the command was run, its seconds, and what happened when, in seconds from its start."""

    commands: int
    seconds: float
    happened: list[tuple[str, float]]


class Bench:
    """A store with photos, and the command that works on them. The store is reached through a gateway."""

    def __init__(self, bucket: s3_server.Bucket, gateway: Gateway, args: list[str], temp: Path) -> None:
        self.bucket, self.gateway, self._args, self._temp = bucket, gateway, args, temp

    def start(self, dest: str) -> subprocess.Popen[bytes]:
        """Starts the command."""
        args = {"s3_endpoint_url": self.gateway.url}
        difference = json.dumps({"applications": [{"name": "recognition", "args": args}]})
        batch = [sys.executable, "-m", "serve_app", "batch", address("in"), "--out", address(dest)]
        return subprocess.Popen(
            [*batch, *self._args],
            cwd=ROOT, env=os.environ | {"SERVE_CONFIG_DIFFERENCE": difference, "TMPDIR": str(self._temp)},
            stdout=sys.stderr, start_new_session=True,
        )  # fmt: skip

    def parts(self, dest: str) -> int:
        """How many parts are there."""
        return sum(name.startswith("part-") for name in Storage(self.bucket.endpoint).names(address(dest)))

    def run(self, dest: str, events: list[tuple[float, str]], outage_s: float) -> Result:
        """Runs the command until it succeeds. Each event comes once so many of its seconds have passed in the work."""
        began, happened = time.monotonic(), list[tuple[str, float]]()
        for tries in range(1, TRIES + 1):
            process = self.start(dest)
            while process.poll() is None:
                time.sleep(0.05)
                if events and self.parts(dest) and time.monotonic() - began >= events[0][0]:
                    happened.append((events[0][1], time.monotonic() - began))
                    self.disturb(events.pop(0)[1], process, outage_s)
            wait_for_processes(process.pid)
            if process.returncode == 0:
                return Result(tries, time.monotonic() - began, happened)
        raise SystemExit(f"the command failed {TRIES} times")

    def disturb(self, event: str, process: subprocess.Popen[bytes], outage_s: float) -> None:
        """Makes the event happen. The worker's is nothing if none is up at the moment."""
        if event == "store":
            self.gateway.close(outage_s)
        elif event == "driver":
            process.kill()
            process.wait()
        else:
            for child in psutil.Process(process.pid).children(recursive=True):
                if "MapWorker" in command(child):
                    child.kill()

    def rows(self, dest: str) -> dict[str, dict[str, Any]]:
        """The rows by their source, without times. Exits if a photo has two."""
        storage, found = Storage(self.bucket.endpoint), dict[str, dict[str, Any]]()
        for name in storage.names(address(dest)):
            if name.startswith("part-"):
                content = storage.read(f"{address(dest)}/{name}")
                for row in parquet.read_table(pa.BufferReader(content)).to_pylist():
                    row.pop("speed")
                    if found.setdefault(row["source"], row) is not row:
                        raise SystemExit(f"{row['source']} has two rows in {dest}")
        return found


class Gateway:
    """Forwards connections to a server. `close` kills it, so that all connections break and no new one is accepted."""

    def __init__(self, target: int) -> None:
        self._target, self._port = target, free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._open()

    def _open(self) -> None:
        self._process = multiprocessing.get_context("spawn").Process(target=forward, args=(self._port, self._target))
        self._process.start()

    def close(self, seconds: float) -> None:
        """Kills the gateway, and starts it again after so many seconds; 0 is for good."""
        self._process.kill()
        self._process.join()
        if seconds:
            time.sleep(seconds)
            self._open()


def forward(port: int, target: int) -> None:
    """Forwards all connections to a port of this machine."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_read, to_write = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(copy(reader, to_write), copy(to_read, writer))

    async def serve() -> None:
        async with await asyncio.start_server(connected, "127.0.0.1", port) as server:
            await server.serve_forever()

    asyncio.run(serve())


def wait_for_processes(session: int) -> None:
    """Waits until the processes of a command that ended or was killed have ended, too. Exits after GONE_S.

    Ray's agents notice the death of a killed command after a minute; they do no work, and are not waited for.
    """
    until = time.monotonic() + GONE_S
    while left := [
        one
        for one in psutil.process_iter()
        if session_of(one) == session and one.status() != psutil.STATUS_ZOMBIE and "Agent" not in command(one)
    ]:
        if time.monotonic() > until:
            raise SystemExit(f"the command {session} left {', '.join(map(command, left))}")
        time.sleep(0.2)


def session_of(process: psutil.Process) -> int:
    """The session of a process, 0 when it has ended."""
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return 0


def address(name: str) -> str:
    """An address in the store."""
    return f"s3://{s3_server.BUCKET}/{name}"


@contextmanager
def bench(photos: list[bytes], count: int, args: list[str]) -> Iterator[Bench]:
    """A store with `count` photos and the bundled weights, and the command with these arguments."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temp, s3_server.bucket() as bucket:
        gateway = Gateway(int(bucket.endpoint.rpartition(":")[2]))
        try:
            for n in range(count):
                key, body = f"in/{n:05d}.jpg", photos[n % len(photos)]
                bucket.client.put_object(Bucket=s3_server.BUCKET, Key=key, Body=body)
            bucket.client.put_object(Bucket=s3_server.BUCKET, Key="in/broken.jpg", Body=photos[0][:500])
            manifest = pin_file(str(BUNDLED)).manifest
            assert manifest
            weights = Store(bucket.endpoint).publish(BUNDLED, manifest, address("road.pt")).uri
            yield Bench(bucket, gateway, ["--weights", weights, *args], Path(temp))
        finally:
            gateway.close(0)


def drill(one: Bench, runs: int, outage_s: float, seed: int) -> int:
    """Runs all, and prints a line for each. Returns the exit code."""
    rng, failed = random.Random(seed), 0
    calm = one.run("calm", [], 0)
    wanted = one.rows("calm")
    print(f"undisturbed: {len(wanted)} rows in {calm.seconds:.0f} s", flush=True)
    for n in range(runs):
        moments = sorted(rng.uniform(0.3, 1.0) * calm.seconds for _ in EVENTS)
        result = one.run(f"run-{n}", list(zip(moments, rng.sample(EVENTS, len(EVENTS)), strict=True)), outage_s)
        rows = one.rows(f"run-{n}")
        good = rows == wanted and len(result.happened) == len(EVENTS)
        failed += not good
        happened = ", ".join(f"{event} at {at:.1f} s" for event, at in result.happened)
        print(
            f"run {n}: {happened}: {result.commands} commands, {result.seconds:.0f} s, {len(rows)} rows, "
            f"{'equal' if good else 'NOT EQUAL'}", flush=True,
        )  # fmt: skip
    return int(failed > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--photos", type=Path, help="folder of JPEGs")
    parser.add_argument("--count", type=int, default=1600)
    parser.add_argument("--outage", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"seed {given.seed}")
    pictures = photos_of(given.photos) if given.photos else [path.read_bytes() for path in sample_photos.files()]
    with bench(pictures, given.count, ["--part", "32"]) as made:
        sys.exit(drill(made, given.runs, given.outage, given.seed))
