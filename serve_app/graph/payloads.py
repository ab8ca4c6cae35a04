"""The payloads that stages pass on. Each stage adds its own time, because the ingress awaits only the last stage.

Frozen dataclasses of arrays, numbers and the letterbox, which travel between processes. Must not know Ray or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_app.settings import PredictOptions
from serve_app.vision import image
from serve_app.vision.tasks.task import Found
from serve_app.weights.identity import Weights


@dataclass(frozen=True, slots=True)
class Prepared:
    """From Preprocessor to Detector: the network inputs of a photo, and how to undo their letterboxes.

    The first input is the whole photo, the others are its tiles.
    """

    inputs_hwc: list[NDArray[np.uint8]]  # RGB (H, W, 3) each
    letterboxes: Sequence[image.Letterbox]
    tile: int | None  # side of the tiles in pixels of the photo, if they were asked for
    options: PredictOptions
    photo: bytes | None  # the encoded original, only if it is to be drawn on
    preprocess_s: float
    expires_at: float  # the deadline, in seconds since 1970


@dataclass(frozen=True, slots=True)
class Detected:
    """From Detector to Postprocessor: candidates in pixels of each network input, best first, and their weights."""

    candidates: Sequence[Found]
    letterboxes: Sequence[image.Letterbox]
    tile: int | None  # as in Prepared
    options: PredictOptions
    photo: bytes | None  # as in Prepared
    expires_at: float  # as in Prepared
    weights: Weights
    preprocess_s: float
    queue_s: float  # in the Detector, while none of its batches ran
    inference_s: float  # of the whole batch; with tiles, while any of its batches ran
    batch_size: int  # of the largest batch
    replica: str  # Serve's id of the Detector replica that ran the batch


@dataclass(frozen=True, slots=True)
class Refusal:
    """Refused weights."""

    uri: str
    reason: str  # stable, for programs
    detail: str  # for people
    at: str  # ISO 8601, UTC


@dataclass(frozen=True, slots=True)
class Serving:
    """What one Detector replica serves, has loaded and has refused."""

    weights: Weights
    device: str  # `cpu` or `cuda`
    image_size: int  # side of the network input, in pixels
    int8_refused: str | None  # why the weights do not run in int8, where it would be the fastest
    uri: str
    previous: Weights | None
    loading: str | None  # the address of weights that are being loaded
    refused: tuple[Refusal, ...]  # newest last


@dataclass(frozen=True, slots=True)
class Tiles:
    """The tiles of a photo: their side in pixels of the photo, and how many there were."""

    side: int
    count: int


@dataclass(frozen=True, slots=True)
class Finished:
    """From Postprocessor to ingress: what was found, in pixels of the upright photo, best first."""

    found: Found
    shape: tuple[int, int]  # height, width of the upright photo
    tiles: Tiles | None  # if they were asked for
    drawn: bytes | None  # the photo with what was found as a JPEG, if requested
    weights: Weights
    preprocess_s: float
    queue_s: float
    inference_s: float
    postprocess_s: float
    batch_size: int
    replica: str


def slowest_ms(finished: Sequence[Finished]) -> dict[str, float]:
    """The longest time that an image spent in each stage, in milliseconds."""
    return {
        "preprocess": max(f.preprocess_s for f in finished) * 1000,
        "queue": max(f.queue_s for f in finished) * 1000,
        "detect": max(f.inference_s for f in finished) * 1000,
        "postprocess": max(f.postprocess_s for f in finished) * 1000,
    }
