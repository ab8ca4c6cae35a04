"""What `make bench-batch` compares with: batch inference as Ray Data's documentation writes it, with the same engine.

Files → `map` decodes → `map_batches` with a pool of actors runs the network and NMS → `write_parquet`.
"""

from __future__ import annotations

import json
import logging
import sys
from functools import partial
from typing import Any

import numpy as np
import ray

from serve_app.settings import AppSettings, PredictOptions
from serve_app.vision import image
from serve_app.vision.image import Letterbox
from serve_app.vision.tasks import results
from serve_app.vision.tasks.task import recognise
from serve_app.weights import loader

SIZE, CPUS, BATCH = 640, 2, 16


def prepared(row: dict[str, Any]) -> dict[str, Any]:
    """One photo as a network input."""
    network_input, letterbox = image.prepare(row["bytes"], SIZE, 52_000_000)
    place = [letterbox.width, letterbox.height, letterbox.scale_x, letterbox.scale_y, letterbox.left, letterbox.top]
    return {"path": row["path"], "input": network_input, "letterbox": np.array(place)}


class Network:
    """The engine of the service, with NMS."""

    def __init__(self, weights: str) -> None:
        settings = AppSettings(weights=weights, cpu_threads=CPUS)
        self._loaded = loader.load(
            weights, partial(loader.fetch, settings=settings), settings=settings, size=SIZE, task="detect",
            device="cpu", batch_sizes={1},
        )  # fmt: skip

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What is on the photos, as JSON."""
        task, names = self._loaded.engine.task, self._loaded.weights.class_names
        outputs, found = self._loaded.engine(list(batch["input"])), []
        for output, place in zip(outputs, batch["letterbox"], strict=True):
            width, height, scale_x, scale_y, left, top = place.tolist()
            letterbox = Letterbox(int(width), int(height), scale_x, scale_y, int(left), int(top))
            objects = recognise(task, output, letterbox, 0.25, PredictOptions())
            found.append(json.dumps(results.of(objects, task, names)))
        return {"path": batch["path"], "results": found}


if __name__ == "__main__":
    from ray import data

    folder, weights, out = sys.argv[1:]
    ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING, num_cpus=CPUS)
    data.DataContext.get_current().enable_progress_bars = False
    photos: Any = data.read_binary_files(folder, include_paths=True)
    pool = data.ActorPoolStrategy(size=1)
    decoded = photos.map(prepared)
    decoded.map_batches(
        Network, fn_constructor_args=[weights], batch_size=BATCH, num_cpus=1, compute=pool
    ).write_parquet(out)
