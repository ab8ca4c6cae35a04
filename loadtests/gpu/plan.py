"""What a run on a GPU measures with: weights, photos, batch sizes, times. And how it times a call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from loadtests.gpu.cpu_stream import CpuStream
from serve_app.vision import image, sample_photos
from serve_app.vision.engines.checkpoint import read_checkpoint
from serve_app.vision.engines.cuda import CudaEngine
from serve_app.vision.engines.cuda_stream import CudaStream
from serve_app.vision.engines.pytorch import TorchEngine

Found = dict[str, Any]
if TYPE_CHECKING:
    from serve_app.settings import Precision

MAX_PIXELS = 52_000_000


@dataclass(frozen=True)
class Plan:
    """The inputs of all parts. A dry run goes through the same parts on the CPU, with small batches and short times."""

    weights: Path
    photos: Path | None  # folder of JPEGs; the two sample photos when not given
    labels: Path | None  # folder of their YOLO labels
    size: int  # side of the network input in pixels
    most: int  # largest batch
    seconds: float  # of each timing
    processes: tuple[int, ...]  # how many share the GPU
    dry: bool

    @property
    def stream(self) -> type[CudaStream]:
        """The stream of the engines."""
        return CpuStream if self.dry else CudaStream

    def engine(self, precision: Precision = "auto", size: int | None = None) -> CudaEngine:
        """An engine of its own."""
        if self.dry:  # on a busy machine, threads that wait for each other take ten times as long
            torch.set_num_threads(1)
        return CudaEngine(read_checkpoint(self.weights), size or self.size, precision, self.stream)

    def reference(self) -> TorchEngine:
        """The engine whose answers are right: PyTorch on the CPU, float32."""
        return TorchEngine(read_checkpoint(self.weights), 1 if self.dry else None)

    @cached_property
    def files(self) -> list[Path]:
        """The photos."""
        return sorted(self.photos.glob("*.jpg")) if self.photos else sample_photos.files()

    @cached_property
    def encoded(self) -> list[bytes]:
        """The photos' bytes."""
        return [file.read_bytes() for file in self.files]

    def inputs(self, n: int, size: int | None = None) -> list[NDArray[np.uint8]]:
        """The network inputs of n photos in squares, as a graph has them; again from the first when there are fewer."""
        side = size or self.size
        made = [np.empty((side, side, 3), np.uint8) for _ in self.encoded[:n]]
        for square, data in zip(made, self.encoded, strict=False):
            image.centre(square, image.prepare(data, side, MAX_PIXELS)[0])
        return [made[i % len(made)] for i in range(n)]


def synchronize(plan: Plan) -> None:
    """Waits until the GPU has done everything."""
    if not plan.dry:
        torch.cuda.synchronize()


def median_ms(once: Callable[[], object], seconds: float) -> float:
    """The median time of a call in milliseconds, over `seconds` and at least three calls, after two not counted."""
    once(), once()
    took: list[float] = []
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end or len(took) < 3:
        once()
        took.append(time.perf_counter() - started)
    return float(np.median(took)) * 1000


def per_second(calls: Sequence[Callable[[], object]], seconds: float) -> float:
    """How often all calls together return in a second, each repeated by a thread of its own."""
    counts, gate = [0] * len(calls), threading.Barrier(len(calls) + 1)
    end = float("inf")

    def repeat(i: int) -> None:
        calls[i]()
        gate.wait()
        while time.perf_counter() < end:
            calls[i]()
            counts[i] += 1

    threads = [threading.Thread(target=repeat, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    gate.wait()
    started = time.perf_counter()
    end = started + seconds
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)
