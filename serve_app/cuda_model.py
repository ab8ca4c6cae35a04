"""The network in PyTorch on a GPU. Has neither been run nor measured yet."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.model import BestClass, names_of

if TYPE_CHECKING:
    from serve_app.model import DetectionModel


class CudaModel:
    """YOLOv8 in PyTorch on a GPU, float16, one captured CUDA graph for each batch size in BUCKETS.

    A batch is padded to the next bucket. Squares go up and heads come down through pinned memory (0.2 MB an image).
    """

    device = "cuda"
    BUCKETS = (1, 2, 4, 8, 16, 32, 64)

    def __init__(self, network: DetectionModel, size: int) -> None:
        self.class_names = names_of(network)
        fused = BestClass(network.fuse(verbose=False)).half().to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network, self._size = fused.eval(), size
        self._lock = threading.Lock()  # the buffers of a graph are one batch's at a time
        self._graphs: dict[int, tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def captured(self, n: int) -> Any:  # noqa: ANN401 - torch.cuda.CUDAGraph, which is not typed
        """The graph of one of BUCKETS, for measuring it alone."""
        return self._buffers(n)[0]

    def _buffers(self, n: int) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        if n not in self._graphs:
            self._graphs[n] = self._capture(n)
        return self._graphs[n]

    def _capture(self, n: int) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(graph, pinned squares, squares, heads, pinned heads) for batches of n."""
        shape = (n, self._size, self._size, 3)
        staging, squares = (
            torch.empty(shape, dtype=torch.uint8).pin_memory(),
            torch.zeros(shape, dtype=torch.uint8, device="cuda"),
        )
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):  # cuDNN chooses its kernels before they are captured
                self._forward(squares)
        torch.cuda.current_stream().wait_stream(side)
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            heads = self._forward(squares)
        return graph, staging, squares, heads, torch.empty(heads.shape, dtype=torch.float32).pin_memory()

    def _forward(self, squares: torch.Tensor) -> torch.Tensor:
        head: torch.Tensor = self._network(squares.permute(0, 3, 1, 2).half().div_(255))
        return head.float()

    @torch.inference_mode()
    def __call__(self, squares_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See Model. A batch larger than the largest bucket runs in pieces."""
        n, most = len(squares_nhwc), self.BUCKETS[-1]
        if n > most:
            return np.concatenate([self(squares_nhwc[i : i + most]) for i in range(0, n, most)])
        with self._lock:
            bucket = next(b for b in self.BUCKETS if b >= n)
            graph, staging, squares, heads, answer = self._buffers(bucket)
            staging[:n].numpy()[...] = squares_nhwc
            squares[:n].copy_(staging[:n], non_blocking=True)
            graph.replay()
            answer[:n].copy_(heads[:n], non_blocking=True)
            torch.cuda.current_stream().synchronize()
            return answer[:n].numpy().copy()
