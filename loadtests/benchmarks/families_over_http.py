"""`make families`, its second half: all networks, or those named, through the service, and Ultralytics' own code.

Ultralytics' is what its `predict` runs for a JPEG, in one process: decoding, letterbox, the fused network in float32,
post-processing. The service has CLIENTS clients, and also float32. Both leave out objects of low confidence, at most
0.999, until MOST are left, because random networks find hundreds.
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from loadtests import clients
from loadtests.benchmarks.bench import loop
from loadtests.benchmarks.random_networks import FAMILIES, OF_TASKS, network
from loadtests.benchmarks.ultralytics_results import Own, results
from loadtests.service import config, free_port, running
from serve_app.vision import image, sample_photos
from serve_app.vision.engines.checkpoint import task_of
from serve_app.vision.tasks.task import Task

CLIENTS, ROUNDS, SECONDS, MOST = 8, 3, 4.0, 30
LEAST = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


def found_by(own: Any, task: Task, size: int, jpeg: bytes, conf: float) -> Own:  # noqa: ANN401 - Ultralytics has no types
    """The objects that Ultralytics' code finds in a JPEG at `size` pixels."""
    bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
    made = image.middle_square(rgb, size, rgb.shape[:2]) if task.crops else image.letterbox(rgb, size)
    return results(own, task.name, *made, conf)


def rates(name: str, folder: Path) -> tuple[float, float, float, int]:
    """Images/s of the service and of Ultralytics, in turn; the confidence, and how many objects both photos have."""
    own = copy.deepcopy(network(name))
    task, file = task_of(own), folder / f"{name}.pt"
    torch.save({"model": own}, file)
    own.fuse(verbose=False)
    photos = [path.read_bytes() for path in sample_photos.files()]
    for conf in (0.0,) if task.crops else LEAST:
        counts = [len(found_by(own, task, task.image_size, photo, conf).confidence) for photo in photos]
        if max(counts) <= MOST:
            break
    ours, theirs = [], []
    with running(config(free_port(), weights=str(file), precision="float32")) as service:
        ask = partial(clients.measure, service.url, photos, CLIENTS, SECONDS, service.pid)
        for _ in range(ROUNDS):
            ours.append(ask(path=f"/v1/predict?conf={conf}").rate)
            theirs.append(
                loop(lambda n: found_by(own, task, task.image_size, photos[n % len(photos)], conf), SECONDS).rate
            )
    return statistics.median(ours), statistics.median(theirs), conf, sum(counts)


def main() -> None:
    """Prints a row of a Markdown table for each network. Raises NotStarted."""
    print("| network | confidence, objects | service, images/s | Ultralytics | ratio |")
    print("|" + "---|" * 5)
    for name in sys.argv[1:] or (*FAMILIES, *OF_TASKS):
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs, conf, objects = rates(name, Path(folder))
        print(f"| {name} | {conf:g}, {objects} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |", flush=True)


if __name__ == "__main__":
    main()
