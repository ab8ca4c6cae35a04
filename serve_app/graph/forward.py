"""One batch through the engine: network inputs in, candidates out. The Detector and the batch job use it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve_app.graph import class_thresholds
from serve_app.settings import PredictOptions
from serve_app.vision.tasks.task import Found
from serve_app.weights.loader import Loaded

Input = tuple[NDArray[np.uint8], PredictOptions]  # RGB (H, W, 3), and the options of its photo


def forward(loaded: Loaded, batch: Sequence[Input]) -> tuple[list[Found], float]:
    """The candidates of each input, by its own options, and the seconds that the batch took."""
    started = time.perf_counter()
    task, names = loaded.engine.task, loaded.weights.class_names
    outputs = loaded.engine([input_hwc for input_hwc, _ in batch])
    found = [
        task.candidates(output, class_thresholds.of(options, names, task.least), options)
        for output, (_, options) in zip(outputs, batch, strict=True)
    ]
    return found, time.perf_counter() - started
