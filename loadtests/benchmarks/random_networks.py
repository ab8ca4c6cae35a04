"""Networks of each YOLO family and task with random weights, which find something.

Trained ones cannot be part of this repository. The layers and sizes of these are real.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from serve_app.vision import sample_photos
from serve_app.vision.engines.layers import TASKS, DetectionModel, head
from serve_app.vision.image import prepare
from serve_app.weights.golden_set import MAX_PIXELS

FAMILIES = (
    "yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov8n-p2", "yolov8n-ghost", "yolov9t", "yolov9c", "yolov10n",
    "yolov10b", "yolo11n", "yolo12n", "yolo26n",
)  # fmt: skip
OF_TASKS = tuple(
    f"{family}-{task}"
    for family, tasks in {
        "yolov8n": ("seg", "pose", "obb", "cls"), "yolov9c": ("seg",), "yolo11n": ("seg", "pose", "obb", "cls"),
        "yolo12n": ("seg", "pose", "obb", "cls"), "yolo26n": ("seg", "pose", "obb", "cls"),
    }.items()
    for task in tasks
)  # fmt: skip
CLASSES = 3
# The last convolutions of each head: the mean and the spread of what they give, so that a network finds something.
SPREAD = {"cv2": (4.0, 1.0), "cv3": (-2.0, 2.0), "cv4": (0.0, 1.0), "cv4_kpts": (0.0, 1.0)}
ENDINGS = {"segment": "seg", "pose": "pose", "obb": "obb", "classify": "cls"}  # of a network's name, by its task
MODELS: dict[str, Any] = {ENDINGS[task]: layers[0] for task, layers in TASKS.items()}


@cache
def network(name: str) -> Any:  # noqa: ANN401 - Ultralytics has no types
    """A network of this family and task with random weights that is sure of some anchors and not of others."""
    torch.manual_seed(0)
    made = MODELS.get(name.partition("-")[2], DetectionModel)(f"{name}.yaml", nc=CLASSES, verbose=False).train()
    photos = [prepare(p.read_bytes(), side, MAX_PIXELS)[0] for p in sample_photos.files() for side in (640, 320)]
    parts = [photo[:160, x : x + 160] for photo in photos for x in (0, 80)]
    noise = torch.rand(2, 3, 10, 10).repeat_interleave(16, 2).repeat_interleave(16, 3)
    batch = torch.cat([torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2) / 255, noise])
    with torch.no_grad():
        for layer in made.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        made(batch)  # gives the batch normalisation the numbers of its inputs, so that anchors differ
        last = made.eval().model[-1]
        if isinstance(last, head.Classify):
            _spread(last.linear, partial(made, batch), 0.0, 2.0)
        for part, (mean, spread) in SPREAD.items():
            for branch in (*(getattr(last, part, None) or ()), *(getattr(last, f"one2one_{part}", None) or ())):
                layer = branch[-1] if isinstance(branch, nn.Sequential) else branch
                if isinstance(layer, nn.Conv2d):
                    _spread(layer, partial(made, batch), mean, spread)
    return made


def _spread(layer: Any, run: Callable[[], object], mean: float, spread: float) -> None:  # noqa: ANN401 - a layer
    """Gives what a layer answers this mean and this spread."""
    seen: list[torch.Tensor] = []
    with layer.register_forward_hook(partial(_keep, seen)):
        run()
    factor = spread / seen[0].std()
    layer.weight.mul_(factor)
    layer.bias.sub_(seen[0].mean()).mul_(factor).add_(mean)


def _keep(seen: list[torch.Tensor], _layer: nn.Module, _given: object, result: torch.Tensor) -> None:
    seen.append(result)


def checkpoint(content: object) -> io.BytesIO:
    """A `.pt` file."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return file


@torch.inference_mode()
def answer(own: Any, image: NDArray[np.uint8]) -> Any:  # noqa: ANN401
    """What Ultralytics' own network answers for a network input (H, W, 3), before NMS, as `predict` calls it."""
    return own(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0]
