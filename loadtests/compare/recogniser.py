"""What the other servers run: JPEG to boxes, with Ultralytics' own code or with this service's engine.

Ultralytics' `predict` needs a torchvision that this PyTorch has no build of. So its steps are called in its order:
OpenCV decodes, its letterbox, the fused network in float32, its post-processing; one image at a time, as its lock does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from loadtests.benchmarks.families_over_http import found_by
from serve_app.settings import DEFAULT_CONF, AppSettings
from serve_app.vision import image
from serve_app.vision.tasks import results
from serve_app.vision.tasks.task import Units, recognise
from serve_app.weights import loader
from serve_app.weights.identity import pin_file

WEIGHTS, ENGINE = "COMPARE_WEIGHTS", "COMPARE_ENGINE"  # environment variables: a file; `ultralytics` or `ours`
Recognise = Callable[[bytes], list[dict[str, Any]]]


def from_environment() -> Recognise:
    """The function that the environment names. Raises WeightsError."""
    return {"ultralytics": ultralytics, "ours": ours}[os.environ[ENGINE]](os.environ[WEIGHTS])


def ultralytics(weights: str) -> Recognise:
    """Ultralytics' own steps."""
    from serve_app.vision.engines.checkpoint import names_of, read_checkpoint, task_of

    network, one_image = read_checkpoint(Path(weights)), Lock()
    task, names, size = task_of(network), names_of(network), pin_file(weights).image_size
    network.fuse(verbose=False)

    def found(jpeg: bytes) -> list[dict[str, Any]]:
        with one_image:
            own = found_by(network, task, size, jpeg, DEFAULT_CONF)
        rows = zip(own.shape.tolist(), own.confidence.tolist(), own.class_id.tolist(), strict=True)
        return [{"box": box, "confidence": score, "class": k, "name": names[k]} for box, score, k in rows]

    return found


def ours(weights: str) -> Recognise:
    """This service's engine and functions."""
    settings = AppSettings(weights=weights)
    pinned = loader.pin(weights, settings)
    size, get = pinned.image_size, partial(loader.fetch, settings=settings)
    loaded = loader.load(weights, get, settings=settings, size=size, task=pinned.task, device="cpu", batch_sizes={1})
    task, names = loaded.engine.task, loaded.engine.class_names

    def found(jpeg: bytes) -> list[dict[str, Any]]:
        network_input, letterbox = image.prepare(jpeg, size, settings.max_image_pixels, crops=task.crops)
        objects = recognise(task, loaded.engine(network_input[None])[0], letterbox, DEFAULT_CONF)
        return [dict(one) for one in results.of(objects, task, names, Units())]

    return found
