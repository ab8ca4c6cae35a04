"""Defines the protocol of an engine, and chooses the engine of a process.

To add an engine, add a module next to this one and a branch in `build`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from serve_app.settings import ROOT
from serve_app.vision.image import centre

if TYPE_CHECKING:
    from serve_app.settings import AppSettings
    from serve_app.vision.engines.layers import DetectionModel

Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]  # N network inputs (H, W, 3) of any shapes, or one array of N
Heads = Sequence[NDArray[np.float32]] | NDArray[np.float32]  # N heads (6, A), or one array of N


class Engine(Protocol):
    """Runs a network: N uint8 RGB images (H, W, 3) in, N heads float32 (6, A) out, one column for each anchor.

    H and W are multiples of 32 up to the size of the service, and may differ from image to image.
    A column is the box's centre x, centre y, width and height in pixels of the network input, then the score of the
    best class in 0..1 and the id of that class. The scores of the other classes are never used, so the network's full
    head (84 rows for COCO, 2.8 MB an image) is cut to these 6 rows.
    """

    class_names: tuple[str, ...]
    device: str

    def __call__(self, images: Images) -> Heads:
        """Runs one batch of network inputs and returns their heads in the same order."""
        ...


def build(network: DetectionModel, sha256: str, settings: AppSettings, size: int, device: str) -> Engine:
    """The engine of a network: CUDA on a GPU, otherwise OpenVINO, or PyTorch if the settings ask for it.

    `sha256` is the hash of the weights, `size` the side of the network input in pixels. Each engine is imported only
    where it runs, because importing torch alone takes 2 s. Raises RuntimeError for int8 without NNCF or on a GPU.
    """
    from serve_app.vision.engines.checkpoint import names_of

    if device == "cuda":
        from serve_app.vision.engines.cuda import CudaEngine

        return CudaEngine(network, size, settings.precision)
    if settings.engine == "torch":
        return reference(network, settings)
    from serve_app.vision.engines import int8, openvino

    graph = openvino.graph(network)
    if settings.precision == "int8":
        graph = int8.quantised(graph, sha256, size, ROOT / settings.weights_cache)
    return openvino.OpenVinoEngine(graph, names_of(network), settings.precision, settings.cpu_threads)


def reference(network: DetectionModel, settings: AppSettings) -> Engine:
    """The engine whose answers are right: PyTorch on the CPU, in float32."""
    from serve_app.vision.engines.pytorch import TorchEngine

    return TorchEngine(network, settings.cpu_threads)


def on_squares(engine: Engine, size: int) -> Callable[[Images], Heads]:
    """Runs `engine` on the same images in the middle of squares, as an engine does that has one shape only."""

    def run(images: Images) -> Heads:
        squares = np.empty((len(images), size, size, 3), np.uint8)
        offsets = [centre(place, image) for place, image in zip(squares, images, strict=True)]
        return moved(np.array(engine(squares)), offsets)

    return run


def moved(heads: NDArray[np.float32], offsets: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
    """Heads (N, 6, A) of squares, with their boxes in pixels of the images that lie in them at left, top."""
    heads[:, :2] -= np.array(offsets, np.float32)[:, :, None]
    return heads
