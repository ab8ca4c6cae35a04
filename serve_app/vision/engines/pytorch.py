"""The PyTorch engine on the CPU, the reference for the other engines.

Also cuts the network's head for all engines (`BestClass`), and traces the network for OpenVINO (`traced`).
"""

from __future__ import annotations

import os
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from serve_app.vision.engines.checkpoint import DetectionModel, names_of


class BestClass(nn.Module):
    """A detection network whose head is cut to the best class of each anchor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Maps images (N, 3, S, S) in 0..1 to heads (N, 6, A), see `Engine`."""
        head = self.network(batch)[0]
        score, class_id = head[:, 4:].max(1, keepdim=True)
        return torch.cat([head[:, :4], score, class_id.to(head.dtype)], 1)


def traced(network: DetectionModel, size: int) -> torch.jit.ScriptModule:
    """The network as a TorchScript graph for other engines: float (N, 3, size, size) in 0..1 in, any N."""
    best, batch = BestClass(network.fuse(verbose=False)).eval(), torch.zeros(2, 3, size, size)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about shapes, which are constant here
        best(batch)  # the first run computes the anchors; the trace then holds them as constants
        graph: torch.jit.ScriptModule = torch.jit.trace(best, batch, check_trace=False)
    return graph


class TorchEngine:
    """YOLOv8 in PyTorch on the CPU, float32. `cpu_threads` sets PyTorch's threads for the whole process."""

    device = "cpu"

    def __init__(self, network: DetectionModel, cpu_threads: int | None = None) -> None:
        self.class_names = names_of(network)
        torch.set_num_threads(cpu_threads or os.cpu_count() or 1)  # Ray sets 1 for replicas with less than one CPU
        self._network = BestClass(network.fuse(verbose=False)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, inputs_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Engine`."""
        batch = torch.from_numpy(inputs_nhwc).permute(0, 3, 1, 2)  # a view, already in channels_last order
        head: torch.Tensor = self._network(batch.float().div_(255))
        return head.numpy()
