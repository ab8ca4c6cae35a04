"""Several processes on one GPU, each with an engine of its own, with and without MPS.

Without MPS (NVIDIA's Multi-Process Service) processes take turns on a GPU; with it their kernels run side by side.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from loadtests.gpu.plan import Found, Plan, per_second

BATCH = 16  # images of each engine's batches, at most
CALLERS = 2  # as many batches at a time as the Detector runs
DAEMON = "nvidia-cuda-mps-control"


def turns(plan: Plan) -> Found:
    """Images a second of 1, 2, … processes together that take turns."""
    return {"img_s": shared(plan, {})}


def mps(plan: Plan) -> Found:
    """The same with MPS."""
    if plan.dry:
        return {"not measured": "a dry run"}
    with mps_daemon() as env:
        return {"img_s": shared(plan, env)} if env else {"not measured": f"no {DAEMON} here"}


@contextmanager
def mps_daemon() -> Iterator[dict[str, str]]:
    """Yields the environment of MPS clients while the daemon runs; empty when this machine has none."""
    daemon = shutil.which(DAEMON, path=f"{os.environ['PATH']}:/usr/local/nvidia/bin")
    if daemon is None:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        env = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        subprocess.run([daemon, "-d"], env=os.environ | env, check=True)
        try:
            yield env
        finally:
            subprocess.run([daemon], input=b"quit\n", env=os.environ | env, check=True, timeout=20)


def shared(plan: Plan, env: dict[str, str]) -> dict[str, float]:
    """By number of processes, their images a second together. All are started first; those not counted are idle."""
    with ExitStack() as stack:
        workers = [stack.enter_context(started(plan, env)) for _ in range(max(plan.processes))]
        for worker in workers:
            answer(worker)  # it is ready
        rates = {}
        for count in plan.processes:
            for worker in workers[:count]:
                ask(worker).write(f"{max(plan.seconds * 4, 0.1)}\n")
                ask(worker).flush()
            rates[str(count)] = sum(answer(worker) for worker in workers[:count])
        return rates


@contextmanager
def started(plan: Plan, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `main`; it ends with the block."""
    command = [sys.executable, "-m", "loadtests.gpu.processes", str(plan.weights), str(plan.size), str(plan.dry or "")]
    worker = subprocess.Popen(
        [*command, str(min(BATCH, plan.most))],
        env=os.environ | env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield worker
    finally:
        ask(worker).close()
        worker.wait(30)


def ask(worker: subprocess.Popen[str]) -> IO[str]:
    """What the worker reads."""
    assert worker.stdin
    return worker.stdin


def answer(worker: subprocess.Popen[str]) -> float:
    """The next number that the worker prints. Raises JSONDecodeError if it has ended."""
    assert worker.stdout
    return float(json.loads(worker.stdout.readline()))


def main(weights: Path, size: int, dry: bool, batch: int) -> None:
    """Prints 0 when ready. Then reads a number of seconds from each line, runs for so long, and prints images/s."""
    plan = Plan(weights, None, None, size, batch, 0, (), dry)
    engine, photos = plan.engine(), plan.inputs(batch)
    engine(photos)
    print(0, flush=True)
    for line in sys.stdin:
        print(batch * per_second([lambda: engine(photos)] * CALLERS, float(line)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), bool(sys.argv[3]), int(sys.argv[4]))
