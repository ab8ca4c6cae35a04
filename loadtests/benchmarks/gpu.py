"""`make bench-gpu`: measures the CUDA engine. Needs PyTorch, NumPy, OpenCV and Ultralytics, but no Ray.

Measures each batch size with the captured CUDA graph alone and with the engine, which also copies; then NMS. Last, it
compares the results with PyTorch on the CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.vision import boxes
from serve_app.vision.engines.checkpoint import read_checkpoint
from serve_app.vision.engines.cuda import CudaEngine
from serve_app.vision.engines.pytorch import TorchEngine


def median_ms(once: Callable[[], object], times: int) -> float:
    """The median time of a call in milliseconds, after three calls that are not counted."""
    for _ in range(3):
        once()
    took = []
    for _ in range(times):
        started = time.perf_counter()
        once()
        took.append(time.perf_counter() - started)
    return float(np.median(took)) * 1000


def replay(model: CudaEngine, n: int) -> Callable[[], None]:
    """A call that replays the captured CUDA graph of batch size `n`, without copies."""
    graph = model.captured(n)

    def once() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return once


def suppress(heads: NDArray[np.float32]) -> None:
    """Selects the candidates of each image, and runs NMS on them."""
    for head in heads:
        boxes.non_max_suppression(boxes.candidates(head, 0.25, None), 0.7, 300)


def main(weights: Path, size: int, photo: Path | None) -> None:
    """Prints the times as a table, then the agreement with PyTorch."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {weights.name}, {size} px")
    model = CudaEngine(read_checkpoint(weights), size)
    network_inputs = np.random.default_rng(0).integers(0, 256, (max(model.BUCKETS), size, size, 3), np.uint8)
    if photo:
        import cv2

        read = cv2.imread(str(photo))
        assert read is not None
        network_inputs[:] = cv2.resize(read, (size, size))[:, :, ::-1]
    print("batch   graph ms   engine ms   graph ÷ engine   engine img/s   NMS ms/img")
    for n in model.BUCKETS:
        batch = network_inputs[:n]
        engine = median_ms(lambda batch=batch: model(batch), 50)  # type: ignore[misc]
        graph = median_ms(replay(model, n), 50)
        heads = model(batch)
        nms = median_ms(lambda heads=heads: suppress(heads), 5) / n  # type: ignore[misc]
        print(f"{n:5d} {graph:10.2f} {engine:11.2f} {graph / engine:16.2f} {n / engine * 1000:14.0f} {nms:12.2f}")
    reference, got = TorchEngine(read_checkpoint(weights))(network_inputs[:2]), model(network_inputs[:2])
    sure = reference[:, 4] >= 0.25
    scores = np.abs(reference[:, 4] - got[:, 4])[sure]
    print(f"scores of {len(scores)} anchors above 0.25: largest difference {scores.max(initial=0):.4f}")
    off = np.abs(reference[:, :4] - got[:, :4]).transpose(0, 2, 1)[sure]
    print(f"their boxes: largest difference {off.max(initial=0):.2f} px")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("models/default.pt"))
    parser.add_argument("--size", type=int, default=640, help="side of the network input in pixels")
    parser.add_argument("--photo", type=Path, help="photo for all network inputs; random pixels when not given")
    args = parser.parse_args()
    main(args.weights, args.size, args.photo)
