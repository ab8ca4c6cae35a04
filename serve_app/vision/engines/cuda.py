"""The PyTorch engine on a GPU, with captured CUDA graphs.

Not yet run or measured on a GPU.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.vision.engines.checkpoint import names_of
from serve_app.vision.engines.pytorch import BestClass

if TYPE_CHECKING:
    from serve_app.vision.engines.checkpoint import DetectionModel


class CudaEngine:
    """YOLOv8 in PyTorch on a GPU, float16, one captured CUDA graph for each batch size in BUCKETS.

    A batch is padded to the next bucket. Network inputs are copied to the GPU, and heads from it, through pinned memory
    (heads: 0.2 MB an image).
    """

    device = "cuda"
    BUCKETS = (1, 2, 4, 8, 16, 32, 64)

    def __init__(self, network: DetectionModel, size: int) -> None:
        self.class_names = names_of(network)
        fused = BestClass(network.fuse(verbose=False)).half().to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network, self._size = fused.eval(), size
        self._lock = threading.Lock()  # the buffers of a graph hold one batch at a time
        self._graphs: dict[int, tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def captured(self, n: int) -> Any:  # noqa: ANN401 - torch.cuda.CUDAGraph, which is not typed
        """The CUDA graph for batches of n, which must be one of BUCKETS. For benchmarks of the graph alone."""
        return self._buffers(n)[0]

    def _buffers(self, n: int) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        if n not in self._graphs:
            self._graphs[n] = self._capture(n)
        return self._graphs[n]

    def _capture(self, n: int) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(graph, pinned inputs, inputs, heads, pinned heads) for batches of n; pinned buffers are on the host."""
        shape = (n, self._size, self._size, 3)
        pinned_inputs = torch.empty(shape, dtype=torch.uint8).pin_memory()
        inputs = torch.zeros(shape, dtype=torch.uint8, device="cuda")
        warmup = torch.cuda.Stream()
        with torch.cuda.stream(warmup):
            for _ in range(3):  # cuDNN must choose its kernels before the capture
                self._forward(inputs)
        torch.cuda.current_stream().wait_stream(warmup)
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            heads = self._forward(inputs)
        return graph, pinned_inputs, inputs, heads, torch.empty(heads.shape, dtype=torch.float32).pin_memory()

    def _forward(self, inputs: torch.Tensor) -> torch.Tensor:
        heads: torch.Tensor = self._network(inputs.permute(0, 3, 1, 2).half().div_(255))
        return heads.float()

    @torch.inference_mode()
    def __call__(self, inputs_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Engine`. A batch larger than the largest bucket runs in pieces."""
        n, most = len(inputs_nhwc), self.BUCKETS[-1]
        if n > most:
            return np.concatenate([self(inputs_nhwc[i : i + most]) for i in range(0, n, most)])
        with self._lock:
            bucket = next(b for b in self.BUCKETS if b >= n)
            graph, pinned_inputs, inputs, heads, pinned_heads = self._buffers(bucket)
            pinned_inputs[:n].numpy()[...] = inputs_nhwc
            inputs[:n].copy_(pinned_inputs[:n], non_blocking=True)
            graph.replay()
            pinned_heads[:n].copy_(heads[:n], non_blocking=True)
            torch.cuda.current_stream().synchronize()
            return pinned_heads[:n].numpy().copy()
