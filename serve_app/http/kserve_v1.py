"""KServe's V1 protocol: `instances` in, `predictions` out. Requests take the same path as those of `/v1/predict`.

An instance is one encoded image in base64: text, `{"b64": text}`, or an object with one of these under any name.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from serve_app import deadline
from serve_app.errors import AppError, MalformedRequest
from serve_app.graph.payloads import Finished
from serve_app.http import body, json_text, request_options
from serve_app.http.oip import live_model
from serve_app.http.predict import image_answers, recognise, written
from serve_app.http.recognition_service import RecognitionService
from serve_app.http.upload import Upload, check_count
from serve_app.settings import AppSettings, PredictOptions


def router(service: RecognitionService) -> APIRouter:
    """The routes around a service; `{model}` is the name of the live weights."""
    routes = APIRouter(prefix="/v1/models", tags=["KServe V1"])

    @routes.get("/{model}")
    async def model_ready(model: str) -> dict[str, Any]:
        return {"name": (await live_model(service, model)).name, "ready": True}

    @routes.post("/{model}:predict", response_model=dict[str, Any])
    async def predict(request: Request, model: str) -> Response:
        async with deadline.until(request.headers.get(deadline.HEADER), service.settings.timeout_s) as expires_at:
            await live_model(service, model)
            sent = parse(await body.read(request, service.settings), service.settings)
            done = await recognise(service, request, sent, expires_at)
        return await written(sent.options, answer, done, sent.options)

    return routes


def answer(done: list[Finished | AppError], options: PredictOptions) -> Response:
    """The response, with the JSON of each image or its error."""
    images = image_answers(done, options)
    return JSONResponse({"predictions": [image.model_dump(by_alias=True, exclude_none=True) for image in images]})


def parse(text: bytes, settings: AppSettings) -> Upload:
    """The images and the options in `parameters`. Raises MalformedRequest, PayloadTooLarge or InvalidParameter."""
    content = json_text.load(text)
    instances = content.get("instances") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(instances, list) or not instances:
        raise MalformedRequest("the body must be a JSON object with `instances`, a list of images")
    check_count(len(instances), settings)
    given = content.get("parameters") or {}
    if not isinstance(given, dict):
        raise MalformedRequest("`parameters` must be an object")
    return Upload(
        [json_text.from_base64(encoded(one)) for one in instances], request_options.parse(given, only_json=True)
    )


def encoded(instance: object) -> str:
    """The base64 text of an instance. Raises MalformedRequest."""
    for _ in range(2):  # `{"image": {"b64": …}}` has two objects
        if isinstance(instance, dict) and len(instance) == 1:
            (instance,) = instance.values()
    if not isinstance(instance, str):
        raise MalformedRequest('an instance must be an image in base64: text, `{"b64": …}` or `{"image": {"b64": …}}`')
    return instance
