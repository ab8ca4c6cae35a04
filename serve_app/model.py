"""Weights in, a network in PyTorch out: uint8 squares to heads. The only module that imports Ultralytics.

That, with torch here and in cuda_model.py, keeps start-up short elsewhere and the AGPL dependency in one place. Knows
nothing of Ray, photos or NMS.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import MissingWeights, UnsafeWeights

os.environ["YOLO_AUTOINSTALL"] = "false"  # read by Ultralytics at import; else it runs pip inside a request

import torch
from PIL import Image
from torch import nn

_pillow_open = Image.open
from ultralytics.nn.modules.block import DFL, SPPF, Bottleneck, C2f
from ultralytics.nn.modules.conv import Concat, Conv
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel as DetectionModel

Image.open = _pillow_open  # Ultralytics replaces it by one that installs pi_heif when an image cannot be read

# All that a YOLOv8 detection checkpoint holds besides tensors and plain values. A `.pt` is a pickle: whatever else
# it names could run code, so it is refused. Nor may it call these: `DetectionModel({"activation": "..."})` would
# evaluate that text. A real checkpoint only has objects made empty and filled, so stand-ins that cannot be called do.
ALLOWED = (
    DetectionModel, Detect, DFL, SPPF, Bottleneck, C2f, Concat, Conv,
    nn.Sequential, nn.ModuleList, nn.Conv2d, nn.BatchNorm2d, nn.SiLU, nn.MaxPool2d, nn.Upsample,
)  # fmt: skip


def _refuse(*_: object, **__: object) -> None:
    raise UnpicklingError("the checkpoint calls a class instead of holding an object")


STAND_INS: dict[type, Any] = {type(kind.__name__, (kind,), {"__init__": _refuse}): kind for kind in ALLOWED}


class Model(Protocol):
    """A network: uint8 RGB (N, S, S, 3) in, heads float32 (N, 6, A) out, one column an anchor.

    A column is the box's centre x, centre y, width, height in pixels of the square, then the best class's score in
    0..1, and that class's id. Of all classes' scores (84 rows for COCO, 2.8 MB an image) nothing else is ever used.
    """

    class_names: tuple[str, ...]
    device: str

    def __call__(self, squares_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Heads, in the order of the squares."""
        ...


class BestClass(nn.Module):
    """A detection network with its head cut to the best class of each anchor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) in 0..1 to (N, 6, A)."""
        head = self.network(batch)[0]
        score, class_id = head[:, 4:].max(1, keepdim=True)
        return torch.cat([head[:, :4], score, class_id.to(head.dtype)], 1)


def read_checkpoint(checkpoint: Path | IO[bytes], name: str = "the file") -> DetectionModel:
    """The network of a YOLOv8 `.pt` in float32, not fused; `name` is for messages about an open file.

    Raises MissingWeights, or UnsafeWeights when it is damaged, of another kind, or holds anything that could run code.
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
        # Of torch's long text only the cause: its advice is to load the file unsafely.
        lines = str(error).splitlines() or [type(error).__name__]
        reason = next((line.strip() for line in lines if "WeightsUnpickler" in line), lines[0])
        raise UnsafeWeights(f"{name} is not a YOLOv8 detection checkpoint that is safe to load: {reason}") from error
    network: Any = (content.get("ema") or content.get("model")) if isinstance(content, dict) else None
    if STAND_INS.get(type(network)) is not DetectionModel:
        raise UnsafeWeights(f"{name} holds no YOLOv8 detection network")
    try:
        for module in network.modules():
            module.__class__ = STAND_INS[type(module)]
        return network.float().eval()
    except (AttributeError, KeyError, TypeError) as error:
        raise UnsafeWeights(f"{name} holds no complete network: {error}") from error


def names_of(network: DetectionModel) -> tuple[str, ...]:
    """Class names by id."""
    return tuple(network.names[i] for i in range(len(network.names)))


def traced(network: DetectionModel, size: int) -> torch.jit.ScriptModule:
    """The network as a graph for batches of any size of squares of `size` pixels, for engines other than PyTorch."""
    best, batch = BestClass(network.fuse(verbose=False)).eval(), torch.zeros(2, 3, size, size)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of shapes, which never change here
        best(batch)  # the first run computes the anchors; the trace then holds them as constants
        graph: torch.jit.ScriptModule = torch.jit.trace(best, batch, check_trace=False)
    return graph


class TorchModel:
    """YOLOv8 in PyTorch on the CPU, float32: the plain reference that other engines are compared with."""

    device = "cpu"

    def __init__(self, network: DetectionModel, cpu_threads: int | None = None) -> None:
        self.class_names = names_of(network)
        torch.set_num_threads(cpu_threads or os.cpu_count() or 1)  # Ray sets 1 for a replica of less than one CPU
        self._network = BestClass(network.fuse(verbose=False)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, squares_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See Model."""
        batch = torch.from_numpy(squares_nhwc).permute(0, 3, 1, 2)  # a view: channels_last already
        head: torch.Tensor = self._network(batch.float().div_(255))
        return head.numpy()
