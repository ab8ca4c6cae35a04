"""One batch through the engine: network inputs in, candidates out. The Detector and the batch job use it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from serve_app.graph import class_thresholds
from serve_app.graph.payloads import Prepared
from serve_app.vision.tasks.task import Found
from serve_app.weights.loader import Loaded


def forward(loaded: Loaded, batch: Sequence[Prepared]) -> tuple[list[Found], float]:
    """The candidates of each image, by its own options, and the seconds that the batch took."""
    started = time.perf_counter()
    task, names = loaded.engine.task, loaded.weights.class_names
    outputs = loaded.engine([one.input_hwc for one in batch])
    found = [
        task.candidates(output, class_thresholds.of(one.options, names, task.least), one.options)
        for output, one in zip(outputs, batch, strict=True)
    ]
    return found, time.perf_counter() - started
