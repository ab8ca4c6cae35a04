"""Defines the protocol of an engine, and chooses the engine of a process.

To add an engine, add a module next to this one and a branch in `build`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from serve_app.vision.image import centre
from serve_app.vision.tasks.task import Output, Task

if TYPE_CHECKING:
    from serve_app.settings import AppSettings
    from serve_app.vision.engines.int8 import Ranges
    from serve_app.vision.engines.layers import Network

Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]  # N network inputs (H, W, 3) of any shapes, or one array of N


class Engine(Protocol):
    """Runs a network: N uint8 RGB images (H, W, 3) in, N outputs out, which the network's task describes.

    H and W are multiples of 32 up to the size of the service, and may differ from image to image.
    """

    class_names: tuple[str, ...]
    task: Task
    device: str
    precision: str  # the numbers of its convolutions: `float32`, `bfloat16`, `float16` or `int8`

    def __call__(self, images: Images) -> Sequence[Output]:
        """Runs one batch of network inputs and returns their outputs in the same order."""
        ...


def build(network: Network, settings: AppSettings, size: int, device: str, ranges: Ranges | None = None) -> Engine:
    """The engine of a network: CUDA on a GPU, otherwise OpenVINO, or PyTorch if the settings ask for it.

    `size` is the side of the network input in pixels. With `ranges` it runs in int8. Each engine is imported only where
    it runs, because importing torch alone takes 2 s. Raises RuntimeError for a precision that the device does not have.
    """
    from serve_app.vision.engines.checkpoint import names_of, task_of

    if device == "cuda":
        from serve_app.vision.engines.cuda import CudaEngine

        return CudaEngine(network, size, settings.precision)
    if settings.engine == "torch":
        return reference(network, settings)
    from serve_app.vision.engines import int8, openvino

    graph, precision = openvino.graph(network), openvino.chosen(settings.precision)
    if ranges is not None:
        graph = int8.quantised(graph, ranges)
    elif precision == "int8":
        precision = "float32"
    return openvino.OpenVinoEngine(graph, names_of(network), task_of(network), precision, settings.cpu_threads)


def wants_int8(settings: AppSettings, device: str) -> bool:
    """Whether int8 should serve here if the weights allow it."""
    if device != "cpu" or settings.engine == "torch":
        return False
    from serve_app.vision.engines.openvino import chosen

    return chosen(settings.precision) == "int8"


def reference(network: Network, settings: AppSettings) -> Engine:
    """The engine whose answers are right: PyTorch on the CPU, in float32."""
    from serve_app.vision.engines.pytorch import TorchEngine

    return TorchEngine(network, settings.cpu_threads)


class OnSquares:
    """Runs `engine` on the same images in the middle of squares, as an engine does that has one shape only."""

    def __init__(self, engine: Engine, size: int) -> None:
        self.class_names, self.task = engine.class_names, engine.task
        self.device, self.precision = engine.device, engine.precision
        self._engine, self._size = engine, size

    def __call__(self, images: Images) -> Sequence[Output]:
        """See `Engine`."""
        squares = np.empty((len(images), self._size, self._size, 3), np.uint8)
        offsets = [centre(place, image) for place, image in zip(squares, images, strict=True)]
        return moved(self.task, self._engine(squares), offsets, images)


def moved(
    task: Task, outputs: Sequence[Output], offsets: Sequence[tuple[int, int]], images: Images
) -> Sequence[Output]:
    """Outputs of squares, in pixels of the images that lie in them at left, top."""
    return [
        task.moved(output, left, top, (image.shape[0], image.shape[1]))
        for output, (left, top), image in zip(outputs, offsets, images, strict=True)
    ]
