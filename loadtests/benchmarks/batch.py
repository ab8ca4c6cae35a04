"""`make bench-batch`: the batch job beside the same work in one process, and beside a plain script for Ray Data.

All three read the same files, which are a folder's photos under many names, and take turns. A rate is that of the whole
command, with the start of Ray and the weights; "of its work" leaves out what comes before the first photo is read. The
memory is what all processes of the command have together: each shared page counts once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from loadtests.benchmarks.bench import in_process
from loadtests.clients import name_of
from loadtests.photo_mix import photos_of
from loadtests.service import ROOT
from serve_app.settings import AppSettings
from serve_app.weights import loader

SIZE = 640
LOOK_S = 2.0  # between looks at the processes


@dataclass
class Run:
    """One run of a command: photos/s, its CPU seconds by process, and its memory in MB at each look."""

    photos: int
    seconds: float = 0.0
    work_s: float | None = None
    cpu_s: dict[str, float] = field(default_factory=dict)
    memory: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        work = f", {self.photos / self.work_s:.1f} of its work" if self.work_s else ""
        cpu = {name: spent * 1000 / self.photos for name, spent in sorted(self.cpu_s.items(), key=lambda kv: -kv[1])}
        spent = ", ".join(f"{name} {ms:.1f}" for name, ms in cpu.items() if ms >= 0.1)
        quarters = [max(self.memory[len(self.memory) * n // 4 :][: len(self.memory) // 4 or 1]) for n in range(4)]
        memory = " ".join(f"{one:,.0f}" for one in quarters)
        return (
            f"{self.photos / self.seconds:.1f} photos/s{work}; CPU-ms a photo: {sum(cpu.values()):.1f} ({spent}); "
            f"most MB in each quarter: {memory}"
        )


def run(line: list[str], photos: int) -> Run:
    """Runs a command to its end. Raises CalledProcessError."""
    found, began, last = Run(photos), time.perf_counter(), dict[int, tuple[str, float]]()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(line, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=os.environ)
        ended = threading.Event()
        looking = threading.Thread(target=look, args=(process.pid, found, last, ended))
        looking.start()
        try:
            code = process.wait()
        finally:
            ended.set()
            looking.join()
        found.seconds = time.perf_counter() - began
        if code:
            output.seek(0)
            raise subprocess.CalledProcessError(code, line, output.read()[-3000:])
    for name, spent in last.values():
        found.cpu_s[name] = found.cpu_s.get(name, 0) + spent
    return found


def look(pid: int, found: Run, last: dict[int, tuple[str, float]], ended: threading.Event) -> None:
    """Notes CPU and memory of a process and all below it, until it has ended."""
    while not ended.wait(LOOK_S):
        memory = 0.0
        for one in below(pid):
            try:
                times, name = one.cpu_times(), "command" if one.pid == pid else name_of(one)
                known = last.get(one.pid, (name, 0.0))[0]  # Ray renames a worker that has nothing to do
                last[one.pid] = (known if name == "IDLE" else name, times.user + times.system)
                memory += one.memory_full_info().pss / 1e6
            except psutil.Error:
                continue
        found.memory.append(memory)


def below(pid: int) -> list[psutil.Process]:
    """A process and all below it; none if it has ended."""
    try:
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def batch(folder: Path, weights: str, count: int, workers: int) -> Run:
    """One run of the batch job."""
    with tempfile.TemporaryDirectory() as temp:
        out = Path(temp) / "rows"
        line = [sys.executable, "-m", "serve_app", "batch", str(folder), "--weights", weights, "--out", str(out)]
        found = run([*line, "--workers", str(workers)], count)
        found.work_s = json.loads((out / "_summary.json").read_text())["last"]["seconds"]
        return found


def plain(folder: Path, weights: str, count: int) -> Run:
    """One run of the plain script."""
    with tempfile.TemporaryDirectory() as temp:
        line = [sys.executable, "-m", "loadtests.benchmarks.plain_ray_data", str(folder), weights, f"{temp}/rows"]
        return run(line, count)


def repeated(photos: Path, count: int, target: Path) -> None:
    """Writes the photos of a folder under `count` names."""
    files = sorted(photos.glob("*.jpg"))
    for n in range(count):
        shutil.copyfile(files[n % len(files)], target / f"{n:06d}.jpg")


def main(args: argparse.Namespace) -> None:
    """Prints each run, and the medians."""
    settings = AppSettings(weights=args.weights)
    get = partial(loader.fetch, settings=settings)
    loaded = loader.load(args.weights, get, settings=settings, size=SIZE, task="detect", device="cpu", batch_sizes={1})
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        repeated(args.photos, args.count, folder)
        content = photos_of(args.photos)
        rates: dict[str, list[float]] = {}
        commands: dict[str, Callable[[], Run]] = {
            f"batch, {n} worker{'s' if n > 1 else ''}": partial(batch, folder, args.weights, args.count, n)
            for n in args.workers
        }
        if not args.alone:
            commands["plain script"] = partial(plain, folder, args.weights, args.count)
        for _ in range(args.rounds):
            inside = in_process(loaded, SIZE, content, 2, args.seconds)
            print(
                f"{'in process':16s} {inside.rate:.1f} photos/s; CPU-ms a photo: {sum(inside.cpu_ms.values()):.1f}",
                flush=True,
            )
            rates.setdefault("in process", []).append(inside.rate)
            for name, command in commands.items():
                made = command()
                print(f"{name:16s} {made}", flush=True)
                rates.setdefault(name, []).append(made.photos / made.seconds)
                if made.work_s:
                    rates.setdefault(f"{name}, of its work", []).append(made.photos / made.work_s)
    best = statistics.median(rates["in process"])
    for name, several in rates.items():
        rate = statistics.median(several)
        print(f"{name:32s} {rate:6.1f} photos/s, {rate / best:.2f} of in process")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--weights", required=True, help="of a detector for 640 px")
    parser.add_argument("--count", type=int, default=6144, help="photos in one run")
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the loop in process")
    parser.add_argument("--alone", action="store_true", help="without the plain script")
    main(parser.parse_args())
