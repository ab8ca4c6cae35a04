"""A stand-in for a GPU's stream on the CPU: for the tests of the CUDA engine, and the dry run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from serve_app.vision.engines.cuda_stream import CudaStream


class CpuStream(CudaStream):
    """Runs at once what a stream would run later. A graph's replay runs the captured function again."""

    device = "cpu"

    def __init__(self) -> None:
        pass

    def buffers(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """See `CudaStream`. Both are filled with 0xFF bytes, so that a test sees what nobody wrote."""
        first, second = (torch.full(shape, 255 if dtype == torch.uint8 else torch.nan, dtype=dtype) for _ in range(2))
        return first, second

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """See `CudaStream`."""
        run()
        return run

    @contextmanager
    def work(self) -> Iterator[None]:
        """See `CudaStream`."""
        yield

    @staticmethod
    def free_bytes() -> int:
        """A GiB, always."""
        return 1 << 30
