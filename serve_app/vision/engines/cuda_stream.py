"""All that the CUDA engine asks of CUDA. Its tests and the dry run of `loadtests/gpu` use a stream for CPUs instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class CudaStream:
    """A stream of the GPU, with the memory pool that its graphs share.

    Graphs may share a pool only if they never run at the same time. On one stream they cannot.
    """

    device = "cuda"

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._done: Any = torch.cuda.Event(blocking=True)  # the waiting thread sleeps, because others need its core

    def buffers(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Two tensors for copies between them: one on the GPU, one in pinned memory of the host."""
        return torch.zeros(shape, dtype=dtype, device=self.device), torch.zeros(shape, dtype=dtype).pin_memory()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Records `run`, which must not allocate what outlives it, as a CUDA graph; returns the graph's replay.

        Other threads may use the GPU meanwhile.
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(3):  # cuDNN must choose its kernels before the capture
                run()
        self._stream.synchronize()
        graph: Any = torch.cuda.CUDAGraph()
        # thread_local: the default would make calls of other threads fail, such as those of the weights that serve.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            run()
        replay: Callable[[], None] = graph.replay
        return replay

    @contextmanager
    def work(self) -> Iterator[None]:
        """Puts what the block starts on this stream, and waits until the stream has done it."""
        with torch.cuda.stream(self._stream):
            yield
            self._done.record()
        self._done.synchronize()

    @staticmethod
    def free_bytes() -> int:
        """Free memory of the GPU, after giving back what this process keeps for later."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
