"""Every error as one JSON shape: RFC 9457 `application/problem+json` with a stable `code`."""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve_app.errors import AppError, Unauthorized
from serve_app.request_log import tell
from serve_app.schemas import Problem

logger = logging.getLogger("ray.serve")


def install(api: FastAPI) -> None:
    """Makes the application answer errors this way."""
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(AppError, _app_error)
    api.add_exception_handler(Exception, _unforeseen)


def request_id(request: Request) -> str:
    """The id that Serve's proxy gave the request, or that the client sent; it is in the logs and in the answer."""
    return request.headers.get("x-request-id", "")


def problem(
    request: Request, status: int, code: str, detail: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """The one shape."""
    title = HTTPStatus(status).phrase
    detail = detail.encode(errors="replace").decode()  # a field name may hold half a surrogate pair
    tell(request, code=code, detail=detail)
    body = Problem(title=title, status=status, code=code, detail=detail, request_id=request_id(request))
    return JSONResponse(body.model_dump(), status, headers, "application/problem+json")


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """404 and 405, from the router."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    return problem(request, status, status.name.lower(), status.description, dict(error.headers or {}))


async def _app_error(request: Request, error: Exception) -> JSONResponse:
    """What the client should know."""
    assert isinstance(error, AppError)
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return problem(request, error.status, error.code, str(error), headers)


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    """A fault of our own: the client learns the request id, the log the rest."""
    logger.error("unforeseen error", exc_info=error)
    return problem(request, AppError.status, AppError.code, "internal error")
