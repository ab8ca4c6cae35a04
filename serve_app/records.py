"""What goes from stage to stage. Each stage adds its time, because the ingress awaits only the end.

Plain frozen records of arrays, numbers and the letterbox: they travel between processes, and know neither Ray nor HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_app import boxes, image
from serve_app.settings import PredictOptions
from serve_app.weights import Weights


@dataclass(frozen=True, slots=True)
class Prepared:
    """A letterboxed photo on its way to the Detector: uint8 (S, S, 3), and how to undo the letterbox."""

    square_hwc: NDArray[np.uint8]
    letterbox: image.Letterbox
    options: PredictOptions
    photo: bytes | None  # the encoded original, when the answer is to be drawn on it
    preprocess_s: float
    moment: float  # when nobody waits for the answer any more, in seconds since 1970


@dataclass(frozen=True, slots=True)
class Detected:
    """Candidate boxes in pixels of the square, best first, before NMS, and the weights they came from."""

    found: boxes.Detections
    letterbox: image.Letterbox
    options: PredictOptions
    photo: bytes | None
    weights: Weights
    preprocess_s: float
    queue_s: float
    inference_s: float
    batch_size: int
    replica: str  # whose batch it was, as Serve names it


@dataclass(frozen=True, slots=True)
class Refusal:
    """Weights that were not taken into service: their address, why (`reason` is for programs), and when (ISO, UTC)."""

    uri: str
    reason: str
    detail: str
    at: str


@dataclass(frozen=True, slots=True)
class Serving:
    """What a Detector has loaded, on `cpu` or `cuda`, for squares of `image_size` pixels; and what it refused."""

    weights: Weights
    device: str
    image_size: int
    uri: str
    previous: Weights | None
    loading: str | None
    refused: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """Final boxes in pixels of the upright photo (height, width), best first."""

    found: boxes.Detections
    shape: tuple[int, int]
    drawn: bytes | None  # a JPEG, when asked for
    weights: Weights
    preprocess_s: float
    queue_s: float
    inference_s: float
    postprocess_s: float
    batch_size: int
    replica: str


def slowest_ms(finished: Sequence[Finished]) -> dict[str, float]:
    """The slowest image's time in each stage, in milliseconds."""
    return {
        "preprocess": max(f.preprocess_s for f in finished) * 1000,
        "queue": max(f.queue_s for f in finished) * 1000,
        "detect": max(f.inference_s for f in finished) * 1000,
        "postprocess": max(f.postprocess_s for f in finished) * 1000,
    }
