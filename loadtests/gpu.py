"""`make bench-gpu`: the CUDA engine on a bare GPU machine: needs PyTorch, NumPy, OpenCV and Ultralytics, no Ray.

Batch sweep of the captured graph alone, and of the engine with its copies; NMS; agreement with PyTorch on the CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app import boxes
from serve_app.cuda_model import CudaModel
from serve_app.model import TorchModel, read_checkpoint


def median_ms(once: Callable[[], object], times: int) -> float:
    """Of one call."""
    for _ in range(3):
        once()
    took = []
    for _ in range(times):
        started = time.perf_counter()
        once()
        took.append(time.perf_counter() - started)
    return float(np.median(took)) * 1000


def replay(model: CudaModel, n: int) -> Callable[[], None]:
    """The captured graph and nothing else."""
    graph = model.captured(n)

    def once() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return once


def suppress(heads: NDArray[np.float32]) -> None:
    """Candidates and NMS of each image."""
    for head in heads:
        boxes.non_max_suppression(boxes.candidates(head, 0.25, None), 0.7, 300)


def main(weights: Path, size: int, photo: Path | None) -> None:
    """Prints the sweep as a table, then the agreement."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {weights.name}, {size} px")
    model = CudaModel(read_checkpoint(weights), size)
    squares = np.random.default_rng(0).integers(0, 256, (max(model.BUCKETS), size, size, 3), np.uint8)
    if photo:
        import cv2

        read = cv2.imread(str(photo))
        assert read is not None
        squares[:] = cv2.resize(read, (size, size))[:, :, ::-1]
    print("batch   graph ms   engine ms   graph ÷ engine   engine img/s   NMS ms/img")
    for n in model.BUCKETS:
        batch = squares[:n]
        engine = median_ms(lambda batch=batch: model(batch), 50)  # type: ignore[misc]
        graph = median_ms(replay(model, n), 50)
        heads = model(batch)
        nms = median_ms(lambda heads=heads: suppress(heads), 5) / n  # type: ignore[misc]
        print(f"{n:5d} {graph:10.2f} {engine:11.2f} {graph / engine:16.2f} {n / engine * 1000:14.0f} {nms:12.2f}")
    reference, got = TorchModel(read_checkpoint(weights))(squares[:2]), model(squares[:2])
    sure = reference[:, 4] >= 0.25
    scores = np.abs(reference[:, 4] - got[:, 4])[sure]
    print(f"scores of {len(scores)} sure anchors: at most {scores.max(initial=0):.4f} off")
    off = np.abs(reference[:, :4] - got[:, :4]).transpose(0, 2, 1)[sure]
    print(f"their boxes: at most {off.max(initial=0):.2f} px off")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("models/default.pt"))
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--photo", type=Path)
    asked = parser.parse_args()
    main(asked.weights, asked.size, asked.photo)
