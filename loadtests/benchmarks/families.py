"""`make families`: each YOLO family against Ultralytics' own code: does it load, find the same, and how fast is it?

The rates are those of the networks alone: of random ones, NMS would take most of the time.
The networks have random weights: trained ones cannot be part of this repository. Their layers and sizes are real.
"""

from __future__ import annotations

import copy
import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from serve_app.vision import sample_photos
from serve_app.vision.boxes import corners
from serve_app.vision.engines.checkpoint import read_checkpoint
from serve_app.vision.engines.engine import Engine, Images
from serve_app.vision.engines.layers import DetectionModel
from serve_app.vision.engines.openvino import OpenVinoEngine, graph
from serve_app.vision.engines.pytorch import BestClass
from serve_app.vision.image import prepare
from serve_app.weights.golden_set import MAX_PIXELS, overlap

FAMILIES = (
    "yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov8n-p2", "yolov8n-ghost", "yolov9t", "yolov9c", "yolov10n",
    "yolov10b", "yolo11n", "yolo12n", "yolo26n",
)  # fmt: skip
CLASSES = 3
SMALL = 8.0  # pixels
SURE, CLOSE = 0.25, 0.01  # confidence from which an anchor counts; classes that differ by less are as good as equal
ROUNDS, TIMES = 3, 4  # alternating; the median round counts


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


@cache
def network(family: str) -> DetectionModel:
    """A network of this family with random weights that is sure of some anchors and not of others."""
    torch.manual_seed(0)
    made = DetectionModel(f"{family}.yaml", nc=CLASSES, verbose=False).train()
    photos = [prepare(p.read_bytes(), 640, MAX_PIXELS)[0][160:320, 160:320] for p in sample_photos.files()]
    noise = torch.rand(2, 3, 10, 10).repeat_interleave(16, 2).repeat_interleave(16, 3)
    batch = torch.cat([torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2) / 255, noise])
    with torch.no_grad():
        for layer in made.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        made(batch)  # gives the batch normalisation the numbers of its inputs, so that anchors differ
        head = made.eval().model[-1]
        for name, mean, spread in (("cv2", 4.0, 1.0), ("cv3", -2.0, 2.0)):
            for part in (*getattr(head, name), *(getattr(head, f"one2one_{name}", None) or ())):
                seen: list[torch.Tensor] = []
                with part[-1].register_forward_hook(partial(_keep, seen)):
                    made(batch)
                part[-1].weight.mul_(spread / seen[0].std())
                part[-1].bias.sub_(seen[0].mean()).mul_(spread / seen[0].std()).add_(mean)
    return made


def _keep(seen: list[torch.Tensor], _layer: nn.Module, _given: object, result: torch.Tensor) -> None:
    seen.append(result)


def checkpoint(content: object) -> io.BytesIO:
    """A `.pt` file."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return file


def agreement(engine: Engine, own: nn.Module, images: Images) -> Agreement:
    """Compares each anchor with Ultralytics' own forward pass of the same network, image by image.

    Anchors, not boxes after NMS: of many random boxes it drops others for a difference in the last digit.
    """
    count, other, ious, scores = 0, 0, [1.0], [0.0]
    for image in images:
        full = answer(own, image)
        got, wanted = engine([image])[0], BestClass.cut(full)[0].numpy()
        best, second = full[0, 4:].topk(2, 0).values.numpy()
        count += int((best >= SURE).sum())
        other += int((got[5] != wanted[5])[(best >= SURE) & (best - second > CLOSE)].sum())
        scores.append(float(np.abs(got[4] - wanted[4]).max()))
        whole = (best >= SURE) & (wanted[2:4].min(0) > SMALL)
        ious += [overlap(*pair) for pair in zip(*(corners(head[:4, whole]) for head in (got, wanted)), strict=True)]
    return Agreement(count, float(np.quantile(ious, 0.01)), max(scores), other)


@torch.inference_mode()
def answer(own: nn.Module, image: NDArray[np.uint8]) -> torch.Tensor:
    """What Ultralytics' own network answers for a network input (H, W, 3), before NMS, as `predict` calls it."""
    full: torch.Tensor = own(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0]
    return full


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


def main() -> None:
    """Prints a row of a Markdown table for each family."""
    images = [prepare(path.read_bytes(), 640, MAX_PIXELS)[0] for path in sample_photos.files()]
    print("| network | parameters | anchors | IoU of 99 % | score differs by | images/s | Ultralytics | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for family in FAMILIES:
        own = copy.deepcopy(network(family))
        parameters = sum(p.numel() for p in own.parameters()) / 1e6
        engine = OpenVinoEngine(graph(read_checkpoint(checkpoint({"model": own}))), ("",) * CLASSES, "float32")
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
