"""What goes over the wire: answers in the shape of the Ultralytics Platform, errors as RFC 9457 problems."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from serve_app.deployments import Finished
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


class ImageAnswer(BaseModel):
    """The objects of one image, surest first."""

    shape: tuple[int, int] = Field(description="height, width of the upright original", examples=[(1080, 810)])
    results: list[Result]
    speed: Speed
    batch_size: int = Field(description="images that shared the forward pass")
    queue_ms: float = Field(description="milliseconds between decoded and the start of the forward pass")

    @classmethod
    def of(cls, done: Finished) -> ImageAnswer:
        """Pixels to 0.01, confidence to 0.00001, times to 0.01 ms."""
        boxes = done.found.xyxy.astype(float).round(2).tolist()  # float32 has no 0.01
        scores, ids = done.found.confidence.tolist(), done.found.class_id.tolist()
        names = done.weights.class_names
        results = [
            Result.model_construct(
                class_id=k,
                name=names[k],
                confidence=round(score, 5),
                box=Box.model_construct(x1=x1, y1=y1, x2=x2, y2=y2),
            )
            for (x1, y1, x2, y2), score, k in zip(boxes, scores, ids, strict=True)
        ]
        preprocess, inference, postprocess, queue = (
            round(s * 1000, 2) for s in (done.preprocess_s, done.inference_s, done.postprocess_s, done.queue_s)
        )
        speed = Speed(preprocess=preprocess, inference=inference, postprocess=postprocess)
        return cls(shape=done.shape, results=results, speed=speed, batch_size=done.batch_size, queue_ms=queue)


class ModelCard(BaseModel):
    """The weights that answered."""

    name: str = Field(examples=["yolov8n"])
    sha256: str
    bundled: bool = Field(description="true for the project's own default model")

    @classmethod
    def of(cls, weights: Weights) -> ModelCard:
        """The public part of the identity."""
        return cls(name=weights.name, sha256=weights.sha256, bundled=weights.bundled)


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
    """A model of `GET /v1/models`."""

    classes: dict[int, str]
    image_size: int
    device: str


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
