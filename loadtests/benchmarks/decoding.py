"""`make decoding`: the time saved by decoding JPEGs at a reduced scale, and its cost in accuracy on enlarged photos."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.benchmarks.accuracy import score
from loadtests.photo_mix import resized
from serve_app.settings import AppSettings
from serve_app.vision import image, sample_photos
from serve_app.vision.image import Letterbox
from serve_app.vision.tasks import results
from serve_app.vision.tasks.task import Units, recognise
from serve_app.weights import loader
from serve_app.weights.loader import Loaded

MAX_PIXELS = 52_000_000
Prepare = Callable[[bytes, int], tuple[np.ndarray, Letterbox]]


def full(data: bytes, size: int) -> tuple[np.ndarray, Letterbox]:
    """Decodes all pixels, then shrinks the photo."""
    return image.letterbox(image.decode(data, MAX_PIXELS), size)


def reduced(data: bytes, size: int) -> tuple[np.ndarray, Letterbox]:
    """Decodes at a reduced scale, as the service does."""
    return image.prepare(data, size, MAX_PIXELS)


def seconds(prepare: Prepare, data: bytes, size: int) -> float:
    """Seconds to prepare one photo."""
    started = time.perf_counter()
    prepare(data, size)
    return time.perf_counter() - started


def detect(loaded: Loaded, prepare: Prepare, data: bytes, size: int) -> dict[str, Any]:
    """An answer in the format of the service's."""
    network_input, letterbox = prepare(data, size)
    task = loaded.engine.task
    found = recognise(task, loaded.engine(network_input[None])[0], letterbox, 0.001)
    shape = letterbox.height, letterbox.width
    return {"shape": shape, "results": results.of(found, task, loaded.engine.class_names, Units(digits=8))}


def main(folder: Path, labels: Path, times: float) -> None:
    """Prints milliseconds and mAP of both ways to decode."""
    twelve = resized(sample_photos.bus(), 3.7)  # 2,997 x 3,996
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
    loaded = loader.load(pinned.uri, get, task=pinned.task, settings=settings, size=size, device="cpu", batch_sizes={1})
    paths = sorted(folder.glob("*.jpg"))
    larger = [resized(p.read_bytes(), times) for p in paths]
    for prepare in took:
        strict, loose = score(paths, labels, [detect(loaded, prepare, data, size) for data in larger])
        what = f"{prepare.__name__}: {len(paths)} photos enlarged {times:g} times"
        print(f"{what}, mAP50-95 {strict:.4f}, mAP50 {loose:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the photos and labels")
    parser.add_argument("--times", type=float, default=4.0, help="scale of the enlarged photos")
    args = parser.parse_args()
    main(args.data / "images/coco128-val", args.data / "images/coco128-val-labels", args.times)
