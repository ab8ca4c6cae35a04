"""HTTP only: routes, the OpenAPI document, and every error as one JSON shape. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Protocol

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from swagger_ui_bundle import swagger_ui_path

from serve_app import __version__, upload
from serve_app.deployments import Finished
from serve_app.errors import AppError, Timeout
from serve_app.schemas import (
    Health,
    ImageAnswer,
    Metadata,
    ModelCard,
    ModelsAnswer,
    PredictAnswer,
    Problem,
    ServedModel,
)
from serve_app.settings import AppSettings, DetectOptions
from serve_app.weights import Weights

logger = logging.getLogger("ray.serve")
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
OPTIONS = DetectOptions.model_json_schema()["properties"]
PREDICT_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}, **OPTIONS},
            }
        },
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["source"],
                "properties": {
                    "source": {
                        "type": "string",
                        "format": "byte",
                        "description": "an image in base64; or a list of them",
                    },
                    **OPTIONS,
                },
            },
            "example": {"source": PIXEL, "conf": 0.25},
        },
    },
}
PREDICT_PARAMETERS = [
    {
        "in": "query",
        "name": name,
        "description": schema["description"],
        "schema": schema,
        "style": "form",
        "explode": False,
    }
    for name, schema in OPTIONS.items()
]


class Recogniser(Protocol):
    """What the routes need. All methods raise AppErrors only."""

    settings: AppSettings

    async def recognise(self, image: bytes, options: DetectOptions) -> Finished:
        """One image through all stages."""
        ...

    async def serving(self) -> tuple[Weights, str]:
        """The live weights and their device."""
        ...

    async def ready(self) -> Weights:
        """The live weights, once every stage is up."""
        ...


def request_id(request: Request) -> str:
    """The id that Serve's proxy gave the request, or that the client sent; it is in the logs and in the answer."""
    return request.headers.get("x-request-id", "")


def build_api(service: Recogniser) -> FastAPI:
    """The ASGI application around a service."""
    api = FastAPI(
        title="Image recognition",
        version=__version__,
        summary="Send a photo, get named boxes.",
        docs_url=None,
        redoc_url=None,
        responses={"default": {"model": Problem, "description": "Any error, as `application/problem+json`"}},
    )
    settings = service.settings

    @api.post("/v1/predict", openapi_extra={"requestBody": PREDICT_BODY, "parameters": PREDICT_PARAMETERS})
    async def predict(request: Request) -> PredictAnswer:
        """Named boxes for one or more images, in pixels of each upright original."""
        try:
            async with asyncio.timeout(settings.timeout_s):
                sent = await upload.read(request, settings)
                done = await asyncio.gather(*(service.recognise(image, sent.options) for image in sent.images))
        except TimeoutError as error:
            raise Timeout(f"no answer within {settings.timeout_s:g} s") from error
        model = ModelCard.of(done[0].weights)
        meta = Metadata(request_id=request_id(request), model=model, image_count=len(done))
        return PredictAnswer(images=[ImageAnswer.of(one) for one in done], metadata=meta)

    @api.get("/v1/models")
    async def models() -> ModelsAnswer:
        """The live weights."""
        weights, device = await service.serving()
        names = dict(enumerate(weights.class_names))
        card = ModelCard.of(weights).model_dump()
        return ModelsAnswer(models=[ServedModel(**card, classes=names, image_size=settings.image_size, device=device)])

    @api.get("/livez")
    async def live() -> Health:
        """The process answers. Says nothing of the other stages."""
        return Health(status="live")

    @api.get("/readyz")
    async def ready() -> Health:
        """200 once every stage is loaded and warm."""
        return Health(status="ready", model=ModelCard.of(await service.ready()))

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """The OpenAPI page, with its assets served from here so that it works offline."""
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=api.title,
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon-32x32.png",
        )

    api.mount("/docs/assets", StaticFiles(directory=swagger_ui_path))
    api.add_exception_handler(HTTPException, on_http_error)
    api.add_exception_handler(AppError, on_app_error)
    api.add_exception_handler(Exception, on_unforeseen)
    return api


def problem(
    request: Request, status: int, code: str, detail: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """The one shape of every error."""
    body = Problem(
        title=HTTPStatus(status).phrase, status=status, code=code, detail=detail, request_id=request_id(request)
    )
    return JSONResponse(body.model_dump(), status, headers, "application/problem+json")


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """404 and 405, from the router."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    return problem(request, status, status.name.lower(), status.description, dict(error.headers or {}))


async def on_app_error(request: Request, error: Exception) -> JSONResponse:
    """What the client should know."""
    assert isinstance(error, AppError)
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else None
    return problem(request, error.status, error.code, str(error), headers)


async def on_unforeseen(request: Request, error: Exception) -> JSONResponse:
    """A fault of our own: the client learns the request id, the log the rest."""
    logger.error("unforeseen error", exc_info=error)
    return problem(request, AppError.status, AppError.code, "internal error")
