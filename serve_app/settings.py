"""What can be set, and within which bounds.

`AppSettings` is `args:` of the application in `serve_config.yaml` (a change redeploys); `BatchSettings` is the
Detector's `user_config:` (a change is live); how many replicas run where is Serve's own `deployments:`.
Nothing here reads a file or the environment.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
MAX_DETECTIONS = 300  # COCO evaluation and Ultralytics' default; bounds NMS, which costs O(max_det x candidates)


class AppSettings(BaseModel):
    """The application's arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str = Field(
        "auto", description="a `.pt` file, or `auto`: `models/yolov8n.pt`, else the bundled `models/default.pt`"
    )
    image_size: Annotated[int, Field(ge=32, le=1280, multiple_of=32)] = Field(
        640, description="side of the square the network sees, in pixels, a multiple of 32"
    )
    cpu_threads: PositiveInt | None = Field(
        None, description="threads of one Detector replica without a GPU; all cores of its node when not set"
    )
    max_body_bytes: PositiveInt = Field(20_000_000, description="largest request body, in bytes")
    max_images: PositiveInt = Field(16, description="most images in one request")
    max_image_pixels: PositiveInt = Field(
        52_000_000, description="largest image, in pixels, checked before it is decoded (a 50 MP phone photo passes)"
    )
    timeout_s: PositiveFloat = Field(30.0, description="longest time for one request, in seconds")


class BatchSettings(BaseModel):
    """How the Detector forms batches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch_size: PositiveInt = Field(8, description="most images in one forward pass")
    batch_wait_timeout_s: NonNegativeFloat = Field(0.01, description="longest wait for a batch to fill, in seconds")


class DetectOptions(BaseModel):
    """What a client may ask of one request. Out of range is an error, never clipped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    conf: Fraction = Field(0.25, description="least confidence of a box")
    iou: Fraction = Field(0.7, description="boxes of one class that overlap more than this are merged by NMS")
    classes: frozenset[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="class ids to report, separated by commas; all when not set"
    )
    max_det: Annotated[int, Field(ge=1, le=MAX_DETECTIONS)] = Field(
        MAX_DETECTIONS, description="most boxes in one image"
    )
