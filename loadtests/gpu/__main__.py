"""`make bench-gpu`: the first hour on a GPU, in at most nine minutes. `--dry-run` goes through it on the CPU.

Needs PyTorch, NumPy, OpenCV, Pillow and Ultralytics, but no Ray and no network; torchvision, if it is there, decodes
JPEGs on the GPU. Prints what each part found as a line of JSON as soon as it is known, then tables for
loadtests/RESULTS.md, and the settings that follow from them. A part that fails, or takes longer than its limit, is
reported, and the next one starts in a new process.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from loadtests.gpu import answers, processes, report, speed
from loadtests.gpu.plan import Found, Plan

PARTS: dict[str, tuple[Callable[[Plan], Found], float]] = {  # and the limit of each in seconds: 540 in all
    "machine": (speed.machine, 45),
    "correct": (answers.correct, 60),
    "sweep": (speed.sweep, 70),
    "accuracy": (answers.accuracy, 60),
    "swap": (answers.swap, 40),
    "turns": (processes.turns, 60),
    "mps": (processes.mps, 60),
    "decode": (speed.decode, 40),
    "memory": (answers.memory, 45),
    "variants": (speed.variants, 60),
}


def run(names: list[str], plan: Plan) -> None:
    """Runs parts in this process, and prints each one's result."""
    for name in names:
        started = time.perf_counter()
        found = PARTS[name][0](plan)
        print(json.dumps({"part": name, "seconds": round(time.perf_counter() - started, 1), **found}), flush=True)


def watch(names: list[str], options: list[str], patience: float = 1) -> dict[str, Found]:
    """Runs parts in another process, each within `patience` times its limit.

    After a failure the rest goes on in a new process.
    """
    found: dict[str, Found] = {}
    while waiting := [name for name in names if name not in found]:
        command = [sys.executable, "-m", "loadtests.gpu", *options, "--parts", *waiting, "--here"]
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            reader = threading.Thread(target=read, args=(child, lines))
            reader.start()
            for name in waiting:
                try:
                    line = lines.get(timeout=(limit := patience * PARTS[name][1]))
                except queue.Empty:
                    line = json.dumps({"part": name, "failed": f"it took more than {limit:g} s"})
                line = line or json.dumps({"part": name, "failed": "see the traceback above"})
                print(line, flush=True)
                found[name] = json.loads(line)
                if "failed" in found[name]:
                    break
            child.kill()
            reader.join()
    return found


def read(child: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    """Puts each line of the child into the queue; an empty one when it has ended."""
    assert child.stdout
    for line in child.stdout:
        lines.put(line.rstrip("\n"))
    lines.put("")


def main(args: argparse.Namespace) -> bool:
    """Runs everything; false if a part failed."""
    dry = Plan(args.weights, args.photos, args.labels, 160, 3, 0.01, (1, 2), dry=True)
    plan = (
        dry
        if args.dry_run
        else Plan(args.weights, args.photos, args.labels, args.size, 64, 0.4, (1, 2, 4, 8), dry=False)
    )
    if args.here:
        run(args.parts, plan)
        return True
    found = watch(args.parts, sys.argv[1:], patience=20 if args.dry_run else 1)  # a dry run may be on a busy machine
    print(report.tables(found))
    return not any("failed" in part for part in found.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("models/default.pt"))
    parser.add_argument("--photos", type=Path, help="folder of JPEGs; two sample photos when not given")
    parser.add_argument("--labels", type=Path, help="folder of their YOLO labels")
    parser.add_argument("--size", type=int, default=640, help="side of the network input in pixels")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--dry-run", action="store_true", help="go through all parts on the CPU, with small batches")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    sys.exit(not main(parser.parse_args()))
