"""Turns every error into one JSON shape: RFC 9457 `application/problem+json` with a stable `code`.

Errors that HAProxy or Serve's proxy answer are shaped in `ops/ray_environment.py` and `proxy_middleware.py`.
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import AppError, Unauthorized
from serve_app.http.request_log import log_facts
from serve_app.http.schemas import Problem

logger = logging.getLogger("ray.serve")


def install(api: FastAPI) -> None:
    """Registers the exception handlers, and the innermost middleware: call it before other middlewares are added."""
    api.add_middleware(UnforeseenErrors)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(AppError, _app_error)


def request_id(request: Request) -> str:
    """The request id from the client, or else from Serve. Logs and responses carry it."""
    return request.headers.get("x-request-id", "")


def problem(
    request: Request, status: int, code: str, detail: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """The problem document of an error. Adds code and detail to the request's log line."""
    title = HTTPStatus(status).phrase
    detail = detail.encode(errors="replace").decode()  # a field name may hold half a surrogate pair
    log_facts(request, code=code, detail=detail)
    body = Problem(title=title, status=status, code=code, detail=detail, request_id=request_id(request))
    return JSONResponse(body.model_dump(), status, headers, "application/problem+json")


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """404 and 405 from the router."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    return problem(request, status, status.name.lower(), status.description, dict(error.headers or {}))


async def _app_error(request: Request, error: Exception) -> JSONResponse:
    """An error with a message for the client."""
    assert isinstance(error, AppError)
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return problem(request, error.status, error.code, str(error), headers)


class UnforeseenErrors:
    """Middleware that answers an unexpected error: the client sees the request id only, the log has the traceback.

    An exception handler for it would run outside of all middlewares, and its answer would lack their headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface. Raises what comes too late for another answer."""
        answered = False

        async def send_and_see(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_see)
        except Exception as error:
            if answered or scope["type"] != "http":
                raise
            logger.error("unexpected error", exc_info=error)
            detail = "the service failed: report the request id to its operator"
            await problem(Request(scope), AppError.status, AppError.code, detail)(scope, receive, send)
