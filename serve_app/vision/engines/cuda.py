"""The PyTorch engine on a GPU, with captured CUDA graphs.

    lane (one of two):  host images ─copy─► inputs ─graph of the batch size─► outputs ─copy─► host outputs

While one lane copies, the other computes, so two batches can be on the GPU. The graphs of a lane share its buffers
and its memory pool, so a lane holds one batch at a time. A graph has one shape, so each image is in the middle of a
square.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING

import torch
from torch import nn

from serve_app.errors import OutOfMemory
from serve_app.vision.engines.checkpoint import names_of, task_of
from serve_app.vision.engines.cuda_stream import CudaStream
from serve_app.vision.engines.engine import moved
from serve_app.vision.engines.float_heads import float_head
from serve_app.vision.image import centre

if TYPE_CHECKING:
    from serve_app.settings import Precision
    from serve_app.vision.engines.engine import Images
    from serve_app.vision.engines.layers import Network
    from serve_app.vision.tasks.task import Output

logger = logging.getLogger("ray.serve")
LANES = 2  # as many as the Detector runs batches at a time
DTYPES: dict[Precision, torch.dtype] = {"auto": torch.float16, "float32": torch.float32}


def batch_sizes(most: int) -> list[int]:
    """The captured batch sizes up to `most`, largest first. A batch is padded to the next one, by a third at most."""
    steps = {step << k for k in range(most.bit_length()) for step in (1, 3)}
    return sorted({n for n in steps if n < most} | {most}, reverse=True)


class Lane:
    """Buffers for batches of up to `most` images, and a graph for each of `batch_sizes`, captured largest first."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, size: int, most: int, stream: CudaStream) -> None:
        self.stream, self._network, self._dtype = stream, network, dtype
        self._inputs, self._host_inputs = stream.buffers((most, size, size, 3), torch.uint8)
        shapes = [output.shape[1:] for output in self._run(1)]
        self._outputs = [stream.buffers((most, *shape), torch.float32) for shape in shapes]
        self._places = self._host_inputs.numpy()
        self.replay = {n: stream.capture(partial(self.forward, n)) for n in batch_sizes(most)}

    def _run(self, n: int) -> tuple[torch.Tensor, ...]:
        batch = self._inputs[:n].permute(0, 3, 1, 2)  # a view of NHWC, which PyTorch calls channels_last
        outputs: tuple[torch.Tensor, ...] = self._network(batch.to(self._dtype).div_(255))
        return outputs

    def forward(self, n: int) -> None:
        """Runs the network on the first n inputs, without a graph."""
        for (place, _), output in zip(self._outputs, self._run(n), strict=True):
            place[:n].copy_(output)

    def __call__(self, images: Images) -> tuple[list[Output], list[tuple[int, int]]]:
        """The outputs of the squares, and left, top of each image in its square."""
        n = len(images)
        offsets = [centre(place, image) for place, image in zip(self._places, images, strict=False)]
        with self.stream.work():
            self._inputs[:n].copy_(self._host_inputs[:n], non_blocking=True)
            self.replay[min(size for size in self.replay if size >= n)]()
            for there, here in self._outputs:
                here[:n].copy_(there[:n], non_blocking=True)
        copies = [here[:n].numpy().copy() for _, here in self._outputs]
        return list(zip(*copies, strict=True)), offsets


class CudaEngine:
    """See `Engine`. Several threads may call it at a time: LANES of them run, the others wait.

    Precision `auto` is float16. A batch that is larger than all before captures graphs first, beside those in use, so
    run the largest once before serving. Raises OutOfMemory then, and keeps what it has.
    """

    device = "cuda"

    def __init__(
        self,
        network: Network,
        size: int,
        precision: Precision = "auto",
        stream: type[CudaStream] = CudaStream,
    ) -> None:
        if precision not in DTYPES:
            raise RuntimeError(f"precision {precision} is for CPUs: a GPU runs {', '.join(DTYPES)}")
        self.class_names, self.task = names_of(network), task_of(network)
        self._size, self._dtype, self._stream = size, DTYPES[precision], stream
        self.precision = str(self._dtype).removeprefix("torch.")
        self._network = float_head(network.fuse(verbose=False).to(self._dtype), size)
        self._network = self._network.to(stream.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._most, self._growing = 0, threading.Lock()
        self.idle: SimpleQueue[Lane] = SimpleQueue()

    def __call__(self, images: Images) -> Sequence[Output]:
        """See `Engine`."""
        if len(images) > self._most:
            self._grow(len(images))
        idle = self.idle
        lane = idle.get()
        try:
            with torch.inference_mode():
                outputs, offsets = lane(images)
        finally:
            idle.put(lane)
        return moved(self.task, outputs, offsets, images)

    @torch.inference_mode()
    def _grow(self, most: int) -> None:
        """Replaces the lanes by larger ones. A batch that runs keeps the old one until it ends."""
        with self._growing:
            if most <= self._most:
                return
            started, free, idle = time.perf_counter(), self._stream.free_bytes(), SimpleQueue[Lane]()
            try:
                for _ in range(LANES):
                    idle.put(Lane(self._network, self._dtype, self._size, most, self._stream()))
            except torch.OutOfMemoryError:
                idle = SimpleQueue()
            if idle.empty():  # outside `except`, which would keep the memory of what failed
                raise OutOfMemory(
                    f"batches of {most} need more GPU memory than the {free >> 20} MB that are free: "
                    "lower max_batch_size, or put fewer replicas on a GPU"
                )
            self.idle, self._most = idle, most
            took, left = time.perf_counter() - started, self._stream.free_bytes()
            logger.info(
                "captured CUDA graphs for batches of %s in %.1f s; GPU memory: %d MB taken, %d MB free",
                batch_sizes(most), took, (free - left) >> 20, left >> 20,
            )  # fmt: skip
