"""The HTTP application: its routes, who may call them, and the headers of every response.

Knows the service behind it only as a `RecognitionService`.
"""

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

from serve_app import __version__
from serve_app.http import kserve_v1, oip, predict, problems
from serve_app.http.auth import Keys
from serve_app.http.recognition_service import RecognitionService
from serve_app.http.request_log import RequestLog, log_facts
from serve_app.http.schemas import Health, ModelCard, ModelsAnswer, Problem, ServedModel
from serve_app.settings import ROOT, AppSettings

PAGE = Path(__file__).with_name("page.html")
# No scripts from other origins, no framing, no guessing of content types. `unsafe-inline` is for Swagger's inline
# script, `blob:` and `data:` are for images that the pages hold in memory.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
}
# Written out, because FastAPI's `model` would document it as `application/json`.
PROBLEM: dict[str, Any] = {
    "description": "Any error",
    "content": {"application/problem+json": {"schema": Problem.model_json_schema(mode="serialization")}},
}
# HAProxy rejects malformed HTTP with its own error page, before the application sees it.
MALFORMED: dict[str, Any] = {
    "description": "The body is not what its content type says. HAProxy rejects malformed HTTP and over-long URLs "
    "itself, in another format",
    "content": PROBLEM["content"] | {"text/html": {}, "text/plain": {}},
}


def build_api(service: RecognitionService) -> FastAPI:
    """Builds the ASGI application around a service."""
    api = FastAPI(
        title="Image recognition",
        version=__version__,
        summary="Send a photo, get named boxes.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would not be a problem document
        telemetry={"tracing": False, "metrics": False, "logs": False},  # Serve and tracing.py do it
        responses={"default": PROBLEM, 400: MALFORMED, 422: PROBLEM},
    )
    problems.install(api)
    guard = [Depends(key_check(service.settings))] if service.settings.api_keys_file else []
    api.include_router(predict.router(service), dependencies=guard)
    api.include_router(oip.router(service), dependencies=guard)
    api.include_router(kserve_v1.router(service), dependencies=guard)
    api.include_router(oip.probes(service))
    api.include_router(model_routes(service), dependencies=guard)
    api.include_router(probes(service))
    api.include_router(pages(api))
    api.mount("/docs/assets", StaticFiles(directory=swagger_ui_path))
    if service.settings.cors_origins:
        origins = list(service.settings.cors_origins)
        shown = ["X-Request-Id", "X-Model-Name", "X-Model-Sha256", "Server-Timing", "Retry-After"]
        api.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=shown
        )
    api.add_middleware(FixedHeaders)
    api.add_middleware(RequestLog, sample=service.settings.log_details)
    return api


def key_check(settings: AppSettings) -> Callable[[Request], AsyncIterator[None]]:
    """Builds a FastAPI dependency that checks the API key and limits the requests of each key at a time.

    The dependency raises Unauthorized, Forbidden or TooManyRequests.
    """
    keys = Keys(ROOT / (settings.api_keys_file or ""), settings.max_requests_per_key)

    async def check(request: Request) -> AsyncIterator[None]:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        owner = keys.identify(token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key"))
        log_facts(request, key=owner)
        with keys.slot(owner):
            yield

    return check


class FixedHeaders:
    """Middleware that sets HEADERS on every response, and answers HEAD like GET, whose body the server leaves out.

    Plain ASGI: Starlette's base class would buffer bodies.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if not scope["path"].startswith("/docs"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send_with_headers)


def model_routes(service: RecognitionService) -> APIRouter:
    """The route that lists the live weights."""
    routes = APIRouter()

    @routes.get("/v1/models")
    async def models() -> ModelsAnswer:
        """The live weights, and the previous, loading and refused ones."""
        return ModelsAnswer(models=[ServedModel.at(await service.serving())])

    return routes


def probes(service: RecognitionService) -> APIRouter:
    """The probes of Kubernetes and SageMaker; they never need an API key."""
    routes = APIRouter()

    @routes.get("/livez")
    async def live() -> Health:
        """200 while the process answers, whatever the state of the other stages."""
        return Health(status="live")

    @routes.get("/readyz")
    @routes.get("/ping", summary="Ready (SageMaker)")
    async def ready() -> Health:
        """200 once every stage is loaded and warm, 503 `not_ready` before."""
        live = await service.ready()
        return Health(status="ready", model=ModelCard.of(live.weights), loading=live.loading is not None)

    return routes


def pages(api: FastAPI) -> APIRouter:
    """The pages for people. They load nothing from other servers, so they also work offline."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def page() -> FileResponse:
        """The page at `/`: drop a photo, see its boxes."""
        return FileResponse(PAGE, media_type="text/html")

    @routes.get("/docs")
    async def docs() -> HTMLResponse:
        """Swagger UI for the OpenAPI document."""
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=api.title,
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon-32x32.png",
        )

    return routes
