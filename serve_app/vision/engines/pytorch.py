"""The PyTorch engine on the CPU, the reference for the other engines.

Also cuts the network's head for all engines (`CutHead`), and traces the network for OpenVINO (`traced`).
"""

from __future__ import annotations

import os
import warnings
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from serve_app.vision.engines.checkpoint import names_of, task_of
from serve_app.vision.engines.layers import Network, head
from serve_app.vision.tasks.task import Output

if TYPE_CHECKING:
    from serve_app.vision.engines.engine import Images


class CutHead(nn.Module):
    """A network whose head is cut to what its task needs: the best class of each anchor, instead of all."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps images (N, 3, H, W) in 0..1 to the outputs of their task, each with N in front."""
        answer, last = self.network(batch)[0], self.network.model[-1]
        if isinstance(last, head.Classify):
            return (answer,)
        full, *others = answer if isinstance(answer, tuple) else (answer,)
        return cut(full, last), *others


def cut(full: torch.Tensor, last: Any) -> torch.Tensor:  # noqa: ANN401 - Ultralytics has no types
    """Maps full heads (N, 4 + classes + E, A) of the layer `last` to heads (N, 6 + E, A), see `Detect`."""
    boxes, scores, extra = full.tensor_split((4, 4 + last.nc), 1)
    score, class_id = scores.max(1, keepdim=True)
    return torch.cat([boxes, score, class_id.to(full.dtype), with_visible(extra, last)], 1)


def with_visible(points: torch.Tensor, last: Any) -> torch.Tensor:  # noqa: ANN401
    """Key points of x and y only (N, 2 K, A) as x, y and -1 (N, 3 K, A); anything else as it is."""
    if not isinstance(last, head.Pose) or last.kpt_shape[1] == 3:
        return points
    xy = points.unflatten(1, (-1, 2))
    return torch.cat([xy, torch.full_like(xy[:, :, :1], -1)], 2).flatten(1, 2)


def traced(network: Network) -> torch.jit.ScriptModule:
    """The network as a TorchScript graph for other engines: float (1, 3, H, W) in 0..1 in, of any H and W."""
    network.model[-1].dynamic = True  # computes the anchors of each input, so that the trace does, too
    best, batch = CutHead(network.fuse(verbose=False)).eval(), torch.zeros(1, 3, 320, 256)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about shapes that Python reads, which none depends on here
        graph: torch.jit.ScriptModule = torch.jit.trace(best, batch, check_trace=False)
    return graph


class TorchEngine:
    """A network in PyTorch on the CPU, float32. `cpu_threads` sets PyTorch's threads for the whole process."""

    device, precision = "cpu", "float32"

    def __init__(self, network: Network, cpu_threads: int | None = None) -> None:
        self.class_names, self.task = names_of(network), task_of(network)
        torch.set_num_threads(cpu_threads or os.cpu_count() or 1)  # Ray sets 1 for replicas with less than one CPU
        self._network = CutHead(network.fuse(verbose=False)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._one_image = Lock()  # the network keeps the anchors of the last shape

    def __call__(self, images: Images) -> list[Output]:
        """See `Engine`. One image after the other, because their shapes may differ."""
        with self._one_image:
            return [self._run(image) for image in images]

    @torch.inference_mode()
    def _run(self, image: NDArray[np.uint8]) -> Output:
        batch = torch.from_numpy(image)[None].permute(0, 3, 1, 2)  # a view, already in channels_last order
        return tuple(output[0].numpy() for output in self._network(batch.float().div_(255)))
