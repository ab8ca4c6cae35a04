"""The HTTP application: which routes there are, who may call them, and the headers of every answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from swagger_ui_bundle import swagger_ui_path

from serve_app import __version__, oip, predict, problems
from serve_app.auth import Keys
from serve_app.recogniser import Recogniser
from serve_app.request_log import RequestLog, tell
from serve_app.schemas import Health, ModelCard, ModelsAnswer, Problem, ServedModel
from serve_app.settings import AppSettings
from serve_app.weights import ROOT

PAGE = Path(__file__).with_name("page.html")
# The pages are ours alone: no other origin's script, no framing, no guessing of types. Swagger's page has an inline
# script, and both pages show images they hold themselves (blob:, data:).
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
}
# Spelled out, as FastAPI's `model` would document `application/json`.
PROBLEM: dict[str, Any] = {
    "description": "Any error",
    "content": {"application/problem+json": {"schema": Problem.model_json_schema()}},
}
# What is no HTTP is refused by the front itself, before it can be ours.
MALFORMED: dict[str, Any] = {
    "description": "Not what it says it is; or no HTTP, or too long a URL, and then not in our shape",
    "content": PROBLEM["content"] | {"text/html": {}, "text/plain": {}},
}


def build_api(service: Recogniser) -> FastAPI:
    """The ASGI application around a service."""
    api = FastAPI(
        title="Image recognition",
        version=__version__,
        summary="Send a photo, get named boxes.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect is no problem document
        telemetry={"tracing": False, "metrics": False, "logs": False},  # Serve's and ours tell it: tracing.py
        responses={"default": PROBLEM, 400: MALFORMED, 422: PROBLEM},
    )
    guard = [Depends(key_check(service.settings))] if service.settings.api_keys_file else []
    api.include_router(predict.router(service), dependencies=guard)
    api.include_router(oip.router(service), dependencies=guard)
    api.include_router(oip.probes(service))
    api.include_router(model_routes(service), dependencies=guard)
    api.include_router(probes(service))
    api.include_router(pages(api))
    api.mount("/docs/assets", StaticFiles(directory=swagger_ui_path))
    if service.settings.cors_origins:
        origins = list(service.settings.cors_origins)
        api.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    api.add_middleware(FixedHeaders)
    api.add_middleware(RequestLog, sample=service.settings.log_details)
    problems.install(api)
    return api


def key_check(settings: AppSettings) -> Callable[[Request], AsyncIterator[None]]:
    """A dependency that lets only holders of a key pass, each a bounded number of requests at a time."""
    keys = Keys(ROOT / (settings.api_keys_file or ""), settings.max_requests_per_key)

    async def check(request: Request) -> AsyncIterator[None]:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        owner = keys.identify(token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key"))
        tell(request, key=owner)
        with keys.slot(owner):
            yield

    return check


class FixedHeaders:
    """Middleware: the same headers on all answers. Plain ASGI, as Starlette's own base class would buffer bodies."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if not scope["path"].startswith("/docs"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, send_with_headers)


def model_routes(service: Recogniser) -> APIRouter:
    """What is live."""
    routes = APIRouter()

    @routes.get("/v1/models")
    async def models() -> ModelsAnswer:
        """The live weights."""
        return ModelsAnswer(models=[ServedModel.at(await service.serving())])

    return routes


def probes(service: Recogniser) -> APIRouter:
    """Kubernetes' and SageMaker's questions; never behind a key."""
    routes = APIRouter()

    @routes.get("/livez")
    async def live() -> Health:
        """The process answers. Says nothing of the other stages."""
        return Health(status="live")

    @routes.get("/readyz")
    @routes.get("/ping", summary="Ready, as SageMaker asks it")
    async def ready() -> Health:
        """200 once every stage is loaded and warm."""
        return Health(status="ready", model=ModelCard.of((await service.ready()).weights))

    return routes


def pages(api: FastAPI) -> APIRouter:
    """For people. Both work without any other server, so also offline."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def page() -> FileResponse:
        """Drop a photo, see its boxes."""
        return FileResponse(PAGE, media_type="text/html")

    @routes.get("/docs")
    async def docs() -> HTMLResponse:
        """The OpenAPI page."""
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=api.title,
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon-32x32.png",
        )

    return routes
