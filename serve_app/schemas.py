"""What goes over the wire: answers in the shape of the Ultralytics Platform, errors as RFC 9457 problems."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from serve_app.coco import CATEGORY_IDS
from serve_app.errors import AppError, InvalidParameter
from serve_app.settings import PredictOptions

if TYPE_CHECKING:
    from serve_app.records import Finished, Serving
    from serve_app.weights import Weights


class Box(BaseModel):
    """Corners in pixels of the upright original image, origin at its top left."""

    x1: float
    y1: float
    x2: float
    y2: float


class Result(BaseModel):
    """One object."""

    model_config = ConfigDict(populate_by_name=True)

    class_id: int = Field(alias="class", examples=[5])
    name: str = Field(examples=["bus"])
    confidence: float = Field(examples=[0.87])
    box: Box


class Speed(BaseModel):
    """Milliseconds in each stage; `inference` is that of the whole batch."""

    preprocess: float
    inference: float
    postprocess: float


class ImageError(BaseModel):
    """Why one image of several has no answer; the same `status` and `code` as a problem document."""

    status: int
    code: str
    detail: str


class ImageAnswer(BaseModel):
    """The objects of one image, surest first; or its `error`, and then nothing else."""

    shape: tuple[int, int] | None = Field(
        None, description="height, width of the upright original", examples=[(1080, 810)]
    )
    results: list[Result] = []
    speed: Speed | None = None
    batch_size: int | None = Field(None, description="images that shared the forward pass")
    queue_ms: float | None = Field(None, description="milliseconds in the Detector before its batch started")
    error: ImageError | None = None

    @classmethod
    def of(cls, done: Finished, options: PredictOptions) -> ImageAnswer:
        """Confidence to 0.00001, times to 0.01 ms, corners as asked."""
        names = done.weights.class_names
        results = [
            Result.model_construct(class_id=k, name=names[k], confidence=score, box=Box.model_validate(box))
            for box, score, k in rows(done, options)
        ]
        preprocess, inference, postprocess, queue = (
            round(s * 1000, 2) for s in (done.preprocess_s, done.inference_s, done.postprocess_s, done.queue_s)
        )
        speed = Speed(preprocess=preprocess, inference=inference, postprocess=postprocess)
        return cls(shape=done.shape, results=results, speed=speed, batch_size=done.batch_size, queue_ms=queue)

    @classmethod
    def failed(cls, error: AppError) -> ImageAnswer:
        """The place of an image that has no answer."""
        return cls(error=ImageError(status=error.status, code=error.code, detail=str(error)))


def rows(done: Finished, options: PredictOptions) -> list[tuple[dict[str, float], float, int]]:
    """(corners x1 y1 x2 y2, confidence, class id) of each box, corners in pixels or fractions, rounded."""
    corners = done.found.xyxy.astype(float)  # float32 has no 0.01
    if options.normalize:
        height, width = done.shape
        corners = corners / (width, height, width, height)
    boxes = (dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)) for box in corners.round(options.digits).tolist())
    scores = done.found.confidence.astype(float).round(5).tolist()
    return list(zip(boxes, scores, done.found.class_id.tolist(), strict=True))


class CocoResult(BaseModel):
    """One line of a COCO results file: box as left, top, width, height; category ids are COCO's 1-90."""

    image_id: int = Field(description="position of the image in the request, from 0")
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float

    @classmethod
    def of(cls, image_id: int, done: Finished, options: PredictOptions) -> list[CocoResult]:
        """Raises InvalidParameter when the model knows a class that COCO does not."""
        try:
            ids = [CATEGORY_IDS[name] for name in done.weights.class_names]
        except KeyError as error:
            raise InvalidParameter(f"`format`: the model's class {error} has no COCO category id") from error
        digits = options.digits
        return [
            cls(
                image_id=image_id,
                category_id=ids[k],
                bbox=(b["x1"], b["y1"], round(b["x2"] - b["x1"], digits), round(b["y2"] - b["y1"], digits)),
                score=score,
            )
            for b, score, k in rows(done, options)
        ]


class ModelCard(BaseModel):
    """The weights that answered."""

    name: str = Field(examples=["yolov8n"])
    sha256: str
    bundled: bool = Field(description="true for the project's own default model")
    version: str | None = Field(None, description="S3 VersionId")

    @classmethod
    def of(cls, weights: Weights) -> ModelCard:
        """The public part of the identity."""
        return cls(name=weights.name, sha256=weights.sha256, bundled=weights.bundled, version=weights.version)


class Metadata(BaseModel):
    """What is true of the whole request."""

    request_id: str
    model: ModelCard
    image_count: int


class PredictAnswer(BaseModel):
    """The answer of `POST /v1/predict`: `images` in the order they were sent."""

    images: list[ImageAnswer]
    metadata: Metadata


class ServedModel(ModelCard):
    """The live weights, with what a Detector replica knows of those before and those to come."""

    uri: str = Field(description="where they come from, pinned")
    classes: dict[int, str]
    image_size: int
    device: str
    previous: ModelCard | None = Field(None, description="still loaded: to go back to them takes no time")
    loading: str | None = Field(None, description="address of the weights that are being loaded and tested")
    refused: list[RefusedWeights] = Field([], description="the last ones that were not taken into service, newest last")

    @classmethod
    def at(cls, live: Serving) -> ServedModel:
        """All that a Detector tells."""
        card = ModelCard.of(live.weights).model_dump()
        previous = ModelCard.of(live.previous) if live.previous else None
        return cls(
            **card,
            uri=live.uri,
            classes=dict(enumerate(live.weights.class_names)),
            image_size=live.image_size,
            device=live.device,
            previous=previous,
            loading=live.loading,
            refused=[RefusedWeights.model_validate(r, from_attributes=True) for r in live.refused],
        )


class RefusedWeights(BaseModel):
    """Weights that were not taken into service."""

    uri: str
    reason: str = Field(description="stable, for programs", examples=["golden"])
    detail: str
    at: str = Field(description="UTC")


class ModelsAnswer(BaseModel):
    """The answer of `GET /v1/models`."""

    models: list[ServedModel]


class Health(BaseModel):
    """The answer of the probes."""

    status: str
    model: ModelCard | None = None


class Problem(BaseModel):
    """The body of every answer that is not 2xx (RFC 9457), `application/problem+json`."""

    type: str = "about:blank"
    title: str = Field(examples=["Bad Request"])
    status: int = Field(examples=[400])
    code: str = Field(description="stable, for programs", examples=["corrupt_image"])
    detail: str = Field(description="for people", examples=["the image is damaged or cut off"])
    request_id: str
