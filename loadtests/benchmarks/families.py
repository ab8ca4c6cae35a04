"""`make families`: each YOLO family against Ultralytics' own code: does it load, find the same, and how fast is it?

The rates are those of the networks alone: of random ones, NMS would take most of the time.
The networks have random weights: trained ones cannot be part of this repository. Their layers and sizes are real.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from loadtests.benchmarks.random_networks import CLASSES, FAMILIES, OF_TASKS, answer, checkpoint, network
from loadtests.benchmarks.tasks import Input, compare
from serve_app.vision import sample_photos
from serve_app.vision.boxes import corners, overlap
from serve_app.vision.engines.checkpoint import read_checkpoint, task_of
from serve_app.vision.engines.engine import Engine, Images
from serve_app.vision.engines.openvino import OpenVinoEngine, graph
from serve_app.vision.engines.pytorch import cut
from serve_app.vision.image import decode, letterbox, middle_square, prepare
from serve_app.weights.golden_set import MAX_PIXELS

SMALL = 8.0  # pixels
SURE, CLOSE = 0.25, 0.01  # confidence from which an anchor counts; classes that differ by less are as good as equal
ROUNDS, TIMES = 3, 4  # alternating; the median round counts
PARTS = 52  # network inputs on which the tasks are compared


@dataclass(frozen=True)
class Agreement:
    """Of the anchors that find something: how many, the IoU that 99 % of the boxes have, and other classes.

    `score` is the largest difference of a score, of all anchors.
    Classes that are as good as equal do not count as other, and boxes with a side of at most SMALL not for the IoU:
    random networks have many, also of negative sides.
    """

    anchors: int
    iou: float
    score: float
    other_classes: int


def agreement(engine: Engine, own: nn.Module, images: Images) -> Agreement:
    """Compares each anchor with Ultralytics' own forward pass of the same network, image by image.

    Anchors, not boxes after NMS: of many random boxes it drops others for a difference in the last digit.
    """
    count, other, ious, scores = 0, 0, [1.0], [0.0]
    for image in images:
        full = answer(own, image)
        (got,), wanted = engine([image])[0], cut(full, own.model[-1])[0].numpy()  # type: ignore[index]
        best, second = full[0, 4:].topk(2, 0).values.numpy()
        count += int((best >= SURE).sum())
        other += int((got[5] != wanted[5])[(best >= SURE) & (best - second > CLOSE)].sum())
        scores.append(float(np.abs(got[4] - wanted[4]).max()))
        whole = (best >= SURE) & (wanted[2:4].min(0) > SMALL)
        ious += [overlap(*pair) for pair in zip(*(corners(head[:4, whole]) for head in (got, wanted)), strict=True)]
    return Agreement(count, float(np.quantile(ious, 0.01)), max(scores), other)


def answers(own: nn.Module, images: Images) -> list[torch.Tensor]:
    """`answer` of each image, one by one."""
    return [answer(own, image) for image in images]


def rates(ways: Sequence[Callable[[], object]], images: int) -> list[float]:
    """Images/s of each way: the median of ROUNDS in which they take turns."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(ROUNDS):
        for way, took in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            way()
            took.append(time.perf_counter() - began)
    return [images / statistics.median(took) for took in seconds]


def parts(crops: bool) -> list[Input]:
    """Network inputs: 4 PARTS large parts of both sample photos, of many shapes."""
    photos = [decode(path.read_bytes(), MAX_PIXELS)[::3, ::3] for path in sample_photos.files()]
    random, made = np.random.default_rng(0), []
    for n in range(4 * PARTS):
        height, width = photos[n % 2].shape[:2]
        h, w = random.integers(height * 6 // 10, height), random.integers(width * 6 // 10, width)
        y, x = random.integers(0, height - h), random.integers(0, width - w)
        part = np.ascontiguousarray(photos[n % 2][y : y + h, x : x + w])
        made.append(middle_square(part, 224, part.shape[:2]) if crops else letterbox(part, 160))
    return made


def compiled(own: nn.Module) -> OpenVinoEngine:
    """The engine of a network as the service builds it from its file, in float32."""
    read = read_checkpoint(checkpoint({"model": own}))
    return OpenVinoEngine(graph(read), ("",) * CLASSES, task_of(read), "float32")


def other_tasks(images: Images) -> None:
    """Prints a row of a Markdown table for each network of another task."""
    print(
        "| network | parameters | inputs | objects | missed | box | mask | points | angle | score | images/s | ratio |"
    )
    print("|" + "---|" * 12)
    for name in OF_TASKS:
        own = copy.deepcopy(network(name))
        parameters, engine = sum(p.numel() for p in own.parameters()) / 1e6, compiled(own)
        crops = engine.task.crops
        same = compare(engine, own, parts(crops), 0.0 if crops else 0.5, most=PARTS)
        own.fuse(verbose=False)
        many = [one for one, _ in parts(crops)[:16]] if crops else list(images) * TIMES
        ours, theirs = rates((partial(engine, many), partial(answers, own, many)), len(many))
        box, mask = (f"{np.quantile(values, 0.01):.4f}" if len(values) > 1 else "" for values in (same.box, same.mask))
        points, angle = (f"{np.quantile(v, 0.99):.3f}" if len(v) > 1 else "" for v in (same.points, same.angle))
        print(
            f"| {name} | {parameters:.1f} M | {same.inputs} | {same.objects} | {same.missed} "
            f"| {box} | {mask} | {points} | {angle} | {max(same.score):.4f} | {ours:.1f} | {ours / theirs:.2f} |",
            flush=True,
        )


def main() -> None:
    """Prints a row of a Markdown table for each family, and one for each family and task."""
    images = [prepare(path.read_bytes(), 640, MAX_PIXELS)[0] for path in sample_photos.files()]
    other_tasks(images)
    print("| network | parameters | anchors | IoU of 99 % | score differs by | images/s | Ultralytics | ratio |")
    print("|" + "---|" * 12)
    for family in FAMILIES:
        own = copy.deepcopy(network(family))
        parameters, engine = sum(p.numel() for p in own.parameters()) / 1e6, compiled(own)
        same = agreement(engine, own, images)
        own.fuse(verbose=False)
        many = images * TIMES
        ours, theirs = rates((partial(engine, many), partial(answers, own, many)), len(many))
        print(
            f"| {family} | {parameters:.1f} M | {same.anchors} | {same.iou:.4f} | {same.score:.4f} "
            f"| {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
