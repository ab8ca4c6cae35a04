"""The JSON of responses: predictions in the shape of the Ultralytics Platform, errors as RFC 9457 problems.

Must not import Ray: `ops/ray_environment.py` needs `Problem` before Ray is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, Field, computed_field

from serve_app.errors import AppError
from serve_app.settings import PredictOptions
from serve_app.vision.tasks import results
from serve_app.vision.tasks.by_name import TASKS
from serve_app.vision.tasks.task import Units

if TYPE_CHECKING:
    from serve_app.graph.payloads import Finished, Serving
    from serve_app.weights.identity import Weights


class Box(BaseModel):
    """Corners in pixels of the upright original, origin at its top left; with `normalize` as fractions of its size."""

    x1: float
    y1: float
    x2: float
    y2: float


class TurnedBox(Box):
    """The four corners of an oriented box, in their order around it (obb)."""

    x3: float
    y3: float
    x4: float
    y4: float


class Segments(BaseModel):
    """The outline of an object, in the units of its box; empty where its mask is."""

    x: list[float]
    y: list[float]


class Keypoints(Segments):
    """The key points of an object, in the order of the model's training, in the units of its box."""

    visible: list[float] | None = Field(None, description="0 to 1 for each point, if the model says it")


class Result(BaseModel):
    """One object, or with a model that classifies, one class of the photo."""

    class_id: int = Field(alias="class", examples=[5])
    name: str = Field(examples=["bus"])
    confidence: float = Field(examples=[0.87])
    box: TurnedBox | Box | None = Field(None, description="none if the model classifies")
    segments: Segments | None = Field(None, description="if the model segments, and unless `masks=false`")
    keypoints: Keypoints | None = Field(None, description="if the model estimates poses")


class Speed(BaseModel):
    """Milliseconds in each stage. `inference` is the time of the whole batch; with `tile` that in which any one ran."""

    preprocess: float
    inference: float
    postprocess: float


class Tiles(BaseModel):
    """The tiles that were recognised besides the whole image."""

    side: int = Field(description="in pixels of the image")
    count: int = Field(description="0 if one tile holds all of it")


class ImageError(BaseModel):
    """Why one of several images failed; `status` and `code` are those of a problem document."""

    status: int
    code: str
    detail: str


class ImageAnswer(BaseModel):
    """The objects of one image, highest confidence first, or only its `error`."""

    shape: tuple[int, int] | None = Field(
        None, description="height, width of the upright original", examples=[(1080, 810)]
    )
    results: list[Result] = []
    tiles: Tiles | None = Field(None, description="with `tile`")
    speed: Speed | None = None
    batch_size: int | None = Field(None, description="images in its batch; of the largest one with `tile`")
    queue_ms: float | None = Field(None, description="milliseconds in the Detector while none of its batches ran")
    error: ImageError | None = None

    @classmethod
    def of(cls, done: Finished, options: PredictOptions) -> ImageAnswer:
        """Rounds times to 0.01 ms, and coordinates as requested."""
        results = [Result.model_validate(one) for one in results_of(done, options)]
        preprocess, inference, postprocess, queue = (
            round(s * 1000, 2) for s in (done.preprocess_s, done.inference_s, done.postprocess_s, done.queue_s)
        )
        speed = Speed(preprocess=preprocess, inference=inference, postprocess=postprocess)
        tiles = Tiles.model_validate(done.tiles, from_attributes=True) if done.tiles else None
        return cls(
            shape=done.shape, results=results, tiles=tiles, speed=speed, batch_size=done.batch_size, queue_ms=queue
        )

    @classmethod
    def failed(cls, error: AppError) -> ImageAnswer:
        """The entry of an image that failed."""
        return cls(error=ImageError(status=error.status, code=error.code, detail=str(error)))


def results_of(done: Finished, options: PredictOptions) -> list[results.Result]:
    """What was found in one image, in pixels or fractions, rounded as requested."""
    height, width = done.shape if options.normalize else (1, 1)
    units = Units(width, height, options.digits)
    return results.of(done.found, TASKS[done.weights.task], done.weights.class_names, units)


class ModelCard(BaseModel):
    """The weights that answered."""

    name: str = Field(examples=["yolov8n"])
    sha256: str
    bundled: bool = Field(description="true for the project's own default model")
    version: str | None = Field(None, description="S3 VersionId")
    precision: str = Field(description="of its numbers: `float32`, `bfloat16`, `float16` or `int8`")

    @classmethod
    def of(cls, weights: Weights) -> ModelCard:
        """The public part of the weights' identity."""
        return cls.model_validate(weights, from_attributes=True)


class Metadata(BaseModel):
    """Facts about the whole request."""

    request_id: str
    model: ModelCard
    image_count: int


class PredictAnswer(BaseModel):
    """The response of `POST /v1/predict`: `images` in the order in which they were sent."""

    images: list[ImageAnswer]
    metadata: Metadata


class ServedModel(ModelCard):
    """The live weights of a Detector replica, and its previous, loading and refused ones."""

    uri: str = Field(description="their pinned address")
    task: str = Field(description="`detect`, `segment`, `pose`, `obb` or `classify`")
    classes: dict[int, str]
    image_size: int = Field(description="side of the network input, in pixels")
    trained_size: int | None = Field(description="that of the training, where the manifest or the file says it")
    device: str = Field(description="`cpu` or `cuda`")
    int8_refused: str | None = Field(None, description="why it does not run in int8, where that would be the fastest")
    previous: ModelCard | None = Field(None, description="still loaded, so that going back to them takes no time")
    loading: str | None = Field(None, description="address of weights that are being loaded and tested")
    refused: list[RefusedWeights] = Field([], description="the last weights that were refused, newest last")

    @classmethod
    def at(cls, live: Serving) -> ServedModel:
        """Everything that a Detector replica reports."""
        card = ModelCard.of(live.weights).model_dump()
        previous = ModelCard.of(live.previous) if live.previous else None
        return cls(
            **card,
            uri=live.uri,
            task=live.weights.task,
            classes=dict(enumerate(live.weights.class_names)),
            image_size=live.image_size,
            trained_size=live.weights.trained_size,
            device=live.device,
            int8_refused=live.int8_refused,
            previous=previous,
            loading=live.loading,
            refused=[RefusedWeights.model_validate(r, from_attributes=True) for r in live.refused],
        )


class RefusedWeights(BaseModel):
    """Weights that were refused."""

    uri: str
    reason: str = Field(description="stable, for programs", examples=["golden"])
    detail: str
    at: str = Field(description="when, in UTC (ISO 8601)")


class ModelsAnswer(BaseModel):
    """The response of `GET /v1/models`."""

    models: list[ServedModel]


class Health(BaseModel):
    """The response of the probes."""

    status: str
    model: ModelCard | None = None
    loading: bool | None = Field(None, description="whether other weights are being loaded and tested")


# Refusals that HAProxy or Serve's proxy answers hold nothing private, and neither knows `cors_origins`.
OPEN_TO_PAGES = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Retry-After, X-Request-Id",
}


class Problem(BaseModel):
    """The body of every response that is not 2xx: `application/problem+json` (RFC 9457)."""

    type: str = "about:blank"
    title: str = Field(examples=["Bad Request"])
    status: int = Field(examples=[400])
    code: str = Field(description="stable, for programs", examples=["corrupt_image"])
    detail: str = Field(description="for people", examples=["the image is empty, damaged or cut off"])
    request_id: str

    @computed_field  # type: ignore[prop-decorator] # mypy does not know decorated properties
    @property
    def error(self) -> str:
        """The same as `detail`, where clients of KServe and Triton look for it."""
        return self.detail
