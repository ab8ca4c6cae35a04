"""Defines the protocol of an engine, and chooses the engine of a process.

To add an engine, add a module next to this one and a branch in `build`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from serve_app.settings import ROOT

if TYPE_CHECKING:
    from serve_app.settings import AppSettings
    from serve_app.vision.engines.checkpoint import DetectionModel


class Engine(Protocol):
    """Runs a network: uint8 RGB (N, S, S, 3) in, heads float32 (N, 6, A) out, one column for each anchor.

    A column is the box's centre x, centre y, width and height in pixels of the network input, then the score of the
    best class in 0..1 and the id of that class. The scores of the other classes are never used, so the network's full
    head (84 rows for COCO, 2.8 MB an image) is cut to these 6 rows.
    """

    class_names: tuple[str, ...]
    device: str

    def __call__(self, inputs_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Runs one batch of network inputs and returns their heads in the same order."""
        ...


def build(network: DetectionModel, sha256: str, settings: AppSettings, size: int, device: str) -> Engine:
    """The engine of a network: CUDA on a GPU, otherwise OpenVINO, or PyTorch if the settings ask for it.

    `sha256` is the hash of the weights, `size` the side of the network input in pixels. Each engine is imported only
    where it runs, because importing torch alone takes 2 s. Raises RuntimeError for int8 without NNCF.
    """
    from serve_app.vision.engines.checkpoint import names_of

    if device == "cuda":
        from serve_app.vision.engines.cuda import CudaEngine

        return CudaEngine(network, size)
    if settings.engine == "torch":
        from serve_app.vision.engines.pytorch import TorchEngine

        return TorchEngine(network, settings.cpu_threads)
    from serve_app.vision.engines import int8, openvino

    graph = openvino.graph(network, size)
    if settings.precision == "int8":
        graph = int8.quantised(graph, sha256, size, ROOT / settings.weights_cache)
    return openvino.OpenVinoEngine(graph, names_of(network), settings.precision, settings.cpu_threads)
