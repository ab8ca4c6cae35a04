"""The PyTorch engine on the CPU, the reference for the other engines.

Also cuts the network's head for all engines (`BestClass`), and traces the network for OpenVINO (`traced`).
"""

from __future__ import annotations

import os
import warnings
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from serve_app.vision.engines.checkpoint import names_of
from serve_app.vision.engines.layers import DetectionModel

if TYPE_CHECKING:
    from serve_app.vision.engines.engine import Images


class BestClass(nn.Module):
    """A detection network whose head is cut to the best class of each anchor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Maps images (N, 3, H, W) in 0..1 to heads (N, 6, A), see `Engine`."""
        return self.cut(self.network(batch)[0])

    @staticmethod
    def cut(head: torch.Tensor) -> torch.Tensor:
        """Maps full heads (N, 4 + classes, A) to heads (N, 6, A)."""
        score, class_id = head[:, 4:].max(1, keepdim=True)
        return torch.cat([head[:, :4], score, class_id.to(head.dtype)], 1)


def traced(network: DetectionModel) -> torch.jit.ScriptModule:
    """The network as a TorchScript graph for other engines: float (1, 3, H, W) in 0..1 in, of any H and W."""
    network.model[-1].dynamic = True  # computes the anchors of each input, so that the trace does, too
    best, batch = BestClass(network.fuse(verbose=False)).eval(), torch.zeros(1, 3, 320, 256)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about shapes that Python reads, which none depends on here
        graph: torch.jit.ScriptModule = torch.jit.trace(best, batch, check_trace=False)
    return graph


class TorchEngine:
    """A network in PyTorch on the CPU, float32. `cpu_threads` sets PyTorch's threads for the whole process."""

    device = "cpu"

    def __init__(self, network: DetectionModel, cpu_threads: int | None = None) -> None:
        self.class_names = names_of(network)
        torch.set_num_threads(cpu_threads or os.cpu_count() or 1)  # Ray sets 1 for replicas with less than one CPU
        self._network = BestClass(network.fuse(verbose=False)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._one_image = Lock()  # the network keeps the anchors of the last shape

    def __call__(self, images: Images) -> list[NDArray[np.float32]]:
        """See `Engine`. One image after the other, because their shapes may differ."""
        with self._one_image:
            return [self._run(image) for image in images]

    @torch.inference_mode()
    def _run(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        batch = torch.from_numpy(image)[None].permute(0, 3, 1, 2)  # a view, already in channels_last order
        head: torch.Tensor = self._network(batch.float().div_(255))[0]
        return head.numpy()
