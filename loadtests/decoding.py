"""`make decoding`: what decoding JPEGs at a reduced scale saves, and what it costs in accuracy on enlarged photos."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.accuracy import score
from loadtests.mix import resized
from serve_app import boxes, image, loader, photos
from serve_app.image import Letterbox
from serve_app.loader import Loaded
from serve_app.settings import AppSettings

MAX_PIXELS = 52_000_000
Prepare = Callable[[bytes, int], tuple[np.ndarray, Letterbox]]


def full(data: bytes, size: int) -> tuple[np.ndarray, Letterbox]:
    """All pixels decoded, then made smaller."""
    return image.letterbox(image.decode(data, MAX_PIXELS), size)


def reduced(data: bytes, size: int) -> tuple[np.ndarray, Letterbox]:
    """What the service does."""
    return image.prepare(data, size, MAX_PIXELS)


def seconds(prepare: Prepare, data: bytes, size: int) -> float:
    """Of one photo."""
    started = time.perf_counter()
    prepare(data, size)
    return time.perf_counter() - started


def detect(loaded: Loaded, prepare: Prepare, data: bytes, size: int) -> dict[str, Any]:
    """An answer like the service's."""
    square, box = prepare(data, size)
    at = boxes.final(loaded.model(square[None])[0], box, 0.001)
    rows = zip(at.xyxy.astype(float).tolist(), at.confidence.astype(float).tolist(), at.class_id.tolist(), strict=True)
    results = [
        {"class": k, "confidence": s, "box": dict(zip(("x1", "y1", "x2", "y2"), b, strict=True))} for b, s, k in rows
    ]
    return {"shape": (box.height, box.width), "results": results}


def main(folder: Path, labels: Path, times: float) -> None:
    """Prints seconds and mAP of both."""
    twelve = resized(photos.bus(), 3.7)  # 3,000 x 4,000
    settings = AppSettings()
    pinned = loader.pin(settings.weights, settings)
    size = pinned.image_size
    took: dict[Prepare, list[float]] = {full: [], reduced: []}
    for _ in range(15):
        for prepare, each in took.items():
            each.append(seconds(prepare, twelve, size))
    whole, part = (statistics.median(t) * 1000 for t in took.values())
    print(f"12 MP to {size} px: full {whole:.1f} ms, reduced {part:.1f} ms, ratio {part / whole:.2f}")
    get = partial(loader.fetch, settings=settings)
    loaded = loader.load(pinned.uri, get, settings=settings, size=size, device="cpu", batch_sizes={1})
    paths = sorted(folder.glob("*.jpg"))
    larger = [resized(p.read_bytes(), times) for p in paths]
    for prepare in took:
        strict, loose = score(paths, labels, [detect(loaded, prepare, data, size) for data in larger])
        what = f"{prepare.__name__}: {len(paths)} photos enlarged {times:g} times"
        print(f"{what}, mAP50-95 {strict:.4f}, mAP50 {loose:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with the photos and labels")
    parser.add_argument("--times", type=float, default=4.0)
    asked = parser.parse_args()
    main(asked.data / "images/coco128-val", asked.data / "images/coco128-val-labels", asked.times)
