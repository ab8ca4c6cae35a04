"""Reads a `.pt` file as a PyTorch network without running code from it.

This is the only module that imports Ultralytics. That keeps the AGPL dependency in one place, and start-up short
elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

from serve_app.errors import MissingWeights, UnsafeWeights

# Ultralytics reads this at import. Without it, Ultralytics runs pip inside a request.
os.environ["YOLO_AUTOINSTALL"] = "false"

import torch
from PIL import Image
from torch import nn

_pillow_open = Image.open
from ultralytics.nn.modules.block import DFL, SPPF, Bottleneck, C2f
from ultralytics.nn.modules.conv import Concat, Conv
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel as DetectionModel

# Ultralytics replaces it with a function that installs pi_heif when an image cannot be read.
Image.open = _pillow_open

# The only classes in a YOLOv8 detection checkpoint, besides tensors and plain values. A `.pt` file is a pickle, and any
# other name in it could run code, so such a file is refused. Calling these classes is refused too, because
# `DetectionModel({"activation": "..."})` evaluates that text. Real checkpoints create empty objects and fill them, so
# they load with stand-ins whose __init__ raises.
ALLOWED = (
    DetectionModel, Detect, DFL, SPPF, Bottleneck, C2f, Concat, Conv,
    nn.Sequential, nn.ModuleList, nn.Conv2d, nn.BatchNorm2d, nn.SiLU, nn.MaxPool2d, nn.Upsample,
)  # fmt: skip


def _refuse(*_: object, **__: object) -> None:
    raise UnpicklingError("the checkpoint calls a class instead of containing an object")


STAND_INS: dict[type, Any] = {type(kind.__name__, (kind,), {"__init__": _refuse}): kind for kind in ALLOWED}


def read_checkpoint(checkpoint: Path | IO[bytes], name: str = "the file") -> DetectionModel:
    """The network of a YOLOv8 `.pt` file in float32, with batch normalisation not fused.

    `name` names an open file in error messages. Raises MissingWeights when the file cannot be read, UnsafeWeights when
    it is damaged, is another kind of file, or contains anything that could run code.
    """
    name = str(checkpoint) if isinstance(checkpoint, Path) else name
    try:
        names: list[Any] = [
            (stand_in, f"{kind.__module__}.{kind.__qualname__}") for stand_in, kind in STAND_INS.items()
        ]
        with torch.serialization.safe_globals(names):
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except OSError as error:
        raise MissingWeights(f"cannot read the weights {name}: {error.strerror}") from error
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        # Keep only the cause from torch's long message. The rest advises to load the file unsafely.
        lines = str(error).splitlines() or [type(error).__name__]
        reason = next((line.strip() for line in lines if "WeightsUnpickler" in line), lines[0])
        raise UnsafeWeights(f"{name} is not a YOLOv8 detection checkpoint that is safe to load: {reason}") from error
    network: Any = (content.get("ema") or content.get("model")) if isinstance(content, dict) else None
    if STAND_INS.get(type(network)) is not DetectionModel:
        raise UnsafeWeights(f"{name} contains no YOLOv8 detection network")
    try:
        for module in network.modules():
            module.__class__ = STAND_INS[type(module)]
        return network.float().eval()
    except (AttributeError, KeyError, TypeError) as error:
        raise UnsafeWeights(f"{name} contains no complete network: {error}") from error


def names_of(network: DetectionModel) -> tuple[str, ...]:
    """Class names; the index is the class id."""
    return tuple(network.names[i] for i in range(len(network.names)))
