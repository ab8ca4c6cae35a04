"""The prediction endpoints: `POST /v1/predict`, and SageMaker's `POST /invocations`, which does the same.

`upload.py` parses the request, `schemas.py` and `coco.py` shape the response.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from serve_app import deadline
from serve_app.errors import AppError, InvalidParameter
from serve_app.graph.payloads import Finished, slowest_ms
from serve_app.http import request_options, upload
from serve_app.http.coco import CocoResult
from serve_app.http.problems import request_id
from serve_app.http.recognition_service import RecognitionService
from serve_app.http.request_log import log_outcome
from serve_app.http.schemas import ImageAnswer, Metadata, ModelCard, PredictAnswer
from serve_app.settings import PredictOptions

LARGE = ThreadPoolExecutor(1, "large-answers")
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
OPTIONS = PredictOptions.model_json_schema()["properties"]
FILE = {"type": "array", "items": {"type": "string", "format": "binary"}}
SOURCE = {"type": "string", "format": "byte", "description": "an image in base64, or a list of them"}
FORM = {"type": "object", "required": ["file"], "properties": {"file": FILE, **OPTIONS}}
JSON = {"type": "object", "required": ["source"], "properties": {"source": SOURCE, **OPTIONS}}
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": FORM},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/json": {"schema": JSON, "example": {"source": PIXEL, "conf": 0.25}},
    },
}
PARAMETERS = [
    {"in": "query", "name": k, "description": v["description"], "schema": v, "style": "form", "explode": False}
    for k, v in OPTIONS.items()
] + [
    {
        "in": "header",
        "name": deadline.HEADER,
        "description": "how long the client waits, in milliseconds; never longer than the service's own limit",
        "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    }
]
# Images of one request that run at a time, so that a request with 16 images does not hold up small requests.
IMAGES_AT_A_TIME = 4
VISIBLE = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}"  # as they are in a header, with letters and digits; `%` begins an escape
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": PredictAnswer | list[CocoResult],
        "description": "What was found; with `format=image` a JPEG, with `format=coco` a list of COCO results",
        "content": {"image/jpeg": {}},
    }
}


def router(service: RecognitionService) -> APIRouter:
    """The routes around a service."""
    routes = APIRouter()

    async def predict(request: Request) -> Response:
        """Finds what is on one or more images. Coordinates are in pixels of the upright original."""
        started = time.perf_counter()  # the event loop's clock has a resolution of 1 ms
        async with deadline.until(request.headers.get(deadline.HEADER), service.settings.timeout_s) as expires_at:
            sent = await upload.read(request, service.settings)
            if sent.options.format == "image" and len(sent.images) > 1:
                raise InvalidParameter("`format`: `image` allows one image in a request, send each image alone")
            done = await recognise(service, request, sent, expires_at)
        answer = await written(sent.options, render, request, sent.options, done)
        finished = [one for one in done if isinstance(one, Finished)]
        answer.headers["X-Model-Name"] = model_header(finished[0].weights.name)
        answer.headers["X-Model-Sha256"] = finished[0].weights.sha256
        answer.headers["Server-Timing"] = server_timing(finished, time.perf_counter() - started)
        return answer

    details: dict[str, Any] = {"responses": ANSWERS, "openapi_extra": {"requestBody": BODY, "parameters": PARAMETERS}}
    routes.add_api_route("/v1/predict", predict, methods=["POST"], **details)
    routes.add_api_route("/invocations", predict, methods=["POST"], **details, summary="Predict (SageMaker)")
    return routes


async def recognise(
    service: RecognitionService, request: Request, sent: upload.Upload, expires_at: float
) -> list[Finished | AppError]:
    """Returns each image's detections or its error, in order. Raises the first error if all images fail."""
    slots = asyncio.Semaphore(IMAGES_AT_A_TIME)
    most_tiles = max(service.settings.max_tiles // len(sent.images), 1)

    async def in_slot(image: bytes) -> Finished:
        async with slots:
            return await service.recognise(image, sent.options, most_tiles, expires_at)

    done = await asyncio.gather(*map(in_slot, sent.images), return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException) and not isinstance(one, AppError):
            raise one
    for one in done:
        if isinstance(one, Finished):
            request_options.check(sent.options, one.weights)
    if all(isinstance(one, AppError) for one in done):
        raise done[0]  # type: ignore[misc] # the line above checks its type
    log_outcome(request, sent.options, done)  # type: ignore[arg-type] # the first loop checks the types
    return done  # type: ignore[return-value]


async def written(options: PredictOptions, write: Callable[..., Response], *args: object) -> Response:
    """The answer as `write` makes it. Tiles may have 20,000 boxes, so it works in a thread then: others do not wait."""
    return await asyncio.get_running_loop().run_in_executor(LARGE, write, *args) if options.tile else write(*args)


def render(request: Request, options: PredictOptions, done: list[Finished | AppError]) -> Response:
    """The response in the requested format."""
    finished = [one for one in done if isinstance(one, Finished)]
    if options.format == "image":
        return Response(finished[0].drawn, media_type="image/jpeg")
    if options.format == "coco":
        lines = [line for i, one in enumerate(all_of(done)) for line in CocoResult.of(i, one, options)]
        return JSONResponse([line.model_dump(exclude_none=True) for line in lines])
    images = image_answers(done, options)
    model = ModelCard.of(finished[0].weights)
    meta = Metadata(request_id=request_id(request), model=model, image_count=len(done))
    content = PredictAnswer(images=images, metadata=meta).model_dump_json(by_alias=True, exclude_none=True)
    return Response(content, media_type="application/json")


def image_answers(done: list[Finished | AppError], options: PredictOptions) -> list[ImageAnswer]:
    """The JSON of each image, in order: its objects, or its error."""
    return [ImageAnswer.failed(o) if isinstance(o, AppError) else ImageAnswer.of(o, options) for o in done]


def all_of(done: list[Finished | AppError]) -> list[Finished]:
    """All images' detections, for formats that cannot hold an error of one image. Raises the first error instead."""
    for one in done:
        if isinstance(one, AppError):
            raise one
    return [one for one in done if isinstance(one, Finished)]


def model_header(name: str) -> str:
    """The value of `X-Model-Name`: all but printable ASCII, and `%`, is percent-encoded as UTF-8."""
    return quote(name, safe=VISIBLE)


def server_timing(finished: list[Finished], total_s: float) -> str:
    """The Server-Timing header (W3C): milliseconds in each stage and in total, and the slowest batch's replica."""
    entries = {name: f"{name};dur={ms:.2f}" for name, ms in (slowest_ms(finished) | {"total": total_s * 1000}).items()}
    entries["detect"] += f';desc="{max(finished, key=lambda one: one.inference_s).replica}"'
    return ", ".join(entries.values())
