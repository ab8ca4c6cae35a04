"""The settings and their bounds.

In `serve_config.yaml`, `AppSettings` is `args:` of the application (a change redeploys), `DetectorSettings` is the
Detector's `user_config:` (a change is applied live). `PredictOptions` are the options of one request. Replicas and
their resources are Serve's own `deployments:`. Must not read files or the environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, PositiveInt, Tag

LARGEST_SIZE = 1280  # pixels: longer side of the largest network input
ROOT = Path(__file__).resolve().parent.parent  # relative paths in settings are below it
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)]
Precision = Literal["auto", "float32", "bfloat16", "int8"]
MAX_CLASSES = 1000  # classes that one option of a request may list
DEFAULT_CONF = 0.25


def _id_or_name(value: object) -> object:
    """Digits are an id, as they come from a query or as a key of JSON."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


ClassId = Annotated[int, Field(ge=0, lt=10_000)]
ClassName = Annotated[str, Field(max_length=1000)]
Class = Annotated[
    Annotated[ClassId, Tag("id")] | Annotated[ClassName, Tag("name")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "id"),
    BeforeValidator(_id_or_name),
]
ConfOfClasses = Annotated[dict[Class, Fraction], Field(max_length=MAX_CLASSES)]
Conf = Annotated[
    Annotated[Fraction, Tag("number")] | Annotated[ConfOfClasses, Tag("mapping")],
    Discriminator(lambda value: "mapping" if isinstance(value, dict) else "number"),
]


def _side_or_auto(value: object) -> object:
    number = _id_or_name(value)
    if value == "auto" or (isinstance(number, int) and not isinstance(number, bool) and 32 <= number <= 20_000):
        return number
    raise ValueError("must be a whole number from 32 to 20000, or `auto`")


Tile = Annotated[Annotated[int, Field(ge=32, le=20_000)] | Literal["auto"], BeforeValidator(_side_or_auto)]
TileMerge = Literal["uncut", "nms_iou", "nms_ios", "nmm_iou", "nmm_ios", "greedy_nmm_iou", "greedy_nmm_ios"]
PILLOW_LIMIT = 89_478_485  # pixels; Pillow itself refuses larger images as decompression bombs
PROXY_WINDOW_BYTES = 32_000_000  # most that is read of a body, see http/proxy_middleware.py
MAX_PREDICTIONS = 160  # at a time in one ingress replica: about 4 s of work on two cores, see http/proxy_middleware.py
REQUEST_ID = "[A-Za-z0-9_.:-]{1,128}"  # from a client; any other is dropped before it reaches a log or a response
MAX_DETECTIONS = 300  # as in Ultralytics' COCO evaluation; bounds NMS, which costs O(max_det x candidates)


class AppSettings(BaseModel):
    """The application's `args:`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str = Field(
        "auto",
        description="a `.pt` file, `s3://bucket/key.pt?versionId=…`, or `auto`: `models/yolov8n.pt`, else the bundled "
        "`models/default.pt`",
    )
    s3_endpoint_url: str | None = Field(None, description="an S3-compatible store; AWS when not set")
    weights_cache: str = Field(
        "models/cache", description="folder for weights from S3, below the repository's root if relative"
    )
    image_size: Annotated[int, Field(ge=32, le=LARGEST_SIZE, multiple_of=32)] | None = Field(
        None,
        description="longer side of the network input, in pixels, a multiple of 32; the weights' own when not set",
    )
    placement: Literal["together", "apart"] = Field(
        "apart",
        description="stages `together` in the Ingress's process, or `apart` in replicas of their own",
    )
    max_waiting_images: PositiveInt = Field(
        64, description="images that run or wait in one process when the stages are together; more are refused"
    )
    engine: Literal["auto", "openvino", "torch"] = Field(
        "auto", description="what runs the network without a GPU: `auto` is `openvino`, `torch` is the reference"
    )
    precision: Precision = Field(
        "auto",
        description="numbers of the network; `auto` is float16 on a GPU, `bfloat16` where the CPU has AMX, `int8` "
        "where it has VNNI only, else `float32`; weights run in `int8` only if they then find what they find in "
        "`float32`, which is tested once, in 10 s",
    )
    cpu_threads: PositiveInt | None = Field(
        None, description="threads of one Detector replica without a GPU; all cores of its node when not set"
    )
    max_body_bytes: Annotated[int, Field(gt=0, le=PROXY_WINDOW_BYTES)] = Field(
        20_000_000, description="largest request body, in bytes"
    )
    max_images: PositiveInt = Field(16, description="most images in one request")
    max_image_pixels: Annotated[int, Field(gt=0, le=PILLOW_LIMIT)] = Field(
        52_000_000,
        description="largest image, in pixels, checked before decoding, which takes up to 14 bytes of memory a pixel",
    )
    max_tiles: PositiveInt = Field(256, description="most tiles that the images of one request are cut into")
    max_image_frames: PositiveInt = Field(1000, description="most frames of an animated image; only the first is used")
    decode_threads: PositiveInt = Field(2, description="images one Preprocessor replica decodes at a time")
    decode_timeout_s: Seconds = Field(10.0, description="longest time to decode one image, in seconds")
    upload_grace_s: Seconds = Field(5.0, description="time before an upload must keep up its rate, in seconds")
    min_upload_bytes_per_s: PositiveInt = Field(8192, description="slowest upload, on average after the grace")
    timeout_s: Annotated[float, Field(gt=0, le=35, allow_inf_nan=False)] = Field(
        30.0,  # at most 35, because HAProxy gives up after 40 s, see ops/ray_environment.py
        description="longest time for one request, in seconds, including its upload",
    )
    api_keys_file: str | None = Field(None, description="file of `name sha256` lines; no key is needed when not set")
    max_requests_per_key: PositiveInt = Field(32, description="requests of one key at a time, in one ingress replica")
    cors_origins: tuple[str, ...] = Field((), description="origins whose pages may call the service; none when empty")
    log_details: Fraction = Field(
        0.0, description="share of requests whose log line also has the options and what was found, 0 to 1"
    )
    image_url_hosts: tuple[str, ...] = Field(
        (), description="hosts from which `source` may name an https URL; none when empty"
    )


class DetectorSettings(BaseModel):
    """The Detector's `user_config:`: how it forms batches, and which weights it serves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch_size: Annotated[int, Field(ge=1, le=256)] = Field(8, description="most images in one batch")
    batch_wait_timeout_s: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        0.01, description="longest wait for a batch to fill, in seconds"
    )
    weights: str | None = Field(None, description="weights to swap to while serving; those of `args` when not set")


class PredictOptions(BaseModel):
    """The options of one request. A value out of range is an error and is never clipped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    conf: Conf = Field(
        DEFAULT_CONF,
        description='least confidence of an object, 0 to 1; or that of each class, `{"bus": 0.6}`, and 0.25 for the '
        "others. classify: 0 when not set",
    )
    iou: Fraction = Field(0.7, description="boxes of one class that overlap more than this are merged by NMS")
    classes: Annotated[frozenset[Class], Field(max_length=MAX_CLASSES)] | None = Field(
        None, description="names or ids of classes to report, separated by commas; all when not set"
    )
    max_det: Annotated[int, Field(ge=1, le=MAX_DETECTIONS)] = Field(
        MAX_DETECTIONS,
        description="most boxes in one image; when not set, 300 and with `tile` 300 in each tile",
    )
    agnostic_nms: bool = Field(False, description="boxes of other classes that overlap as much are merged too")
    tile: Tile | None = Field(
        None,
        description="finds small objects: side in pixels of the square tiles that are recognised besides the whole "
        "image; `auto` is the side of the network input, or more if `max_tiles` demands it",
    )
    overlap: Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False)] = Field(
        0.2, description="share of a tile's side that it has in common with the next tile"
    )
    tile_merge: TileMerge = Field(
        "uncut",
        description="how boxes of several tiles become one, if they are of one class and overlap by 0.5. `uncut`: the "
        "best stays, and boxes that the border of a tile cuts are left out where another tile shows more. The others "
        "are SAHI's, for example `greedy_nmm_ios`: `nms` keeps the best, `greedy_nmm` makes one box around it and "
        "those that overlap with it, `nmm` also of those that overlap with these; `iou` is the overlap over the "
        "union, `ios` over the smaller box",
    )
    masks: bool = Field(True, description="segment: with the outlines of the objects; without, boxes only")
    retina_masks: bool = Field(
        False, description="segment: outlines at the photo's own resolution instead of that of the network input"
    )
    topk: Annotated[int, Field(ge=1, le=MAX_CLASSES)] = Field(5, description="classify: most classes in one image")
    format: Literal["json", "image", "coco"] = Field(
        "json",
        description="`json`; `image`: the photo with what was found drawn; `coco`: COCO results",
    )
    normalize: bool = Field(False, description="corners as fractions of width and height instead of pixels")
    decimals: Annotated[int, Field(ge=0, le=8)] | None = Field(
        None, description="decimals of corners; 2 for pixels and 5 for fractions when not set"
    )

    @property
    def digits(self) -> int:
        """Decimals of corners: as requested, else 5 for fractions and 2 for pixels."""
        return self.decimals if self.decimals is not None else 5 if self.normalize else 2
