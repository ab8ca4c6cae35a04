"""Turns every error into one JSON shape: RFC 9457 `application/problem+json` with a stable `code`.

Errors that HAProxy or Serve's proxy answer are shaped in `ops/ray_environment.py` and `proxy_middleware.py`.
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve_app.errors import AppError, Unauthorized
from serve_app.http.request_log import log_facts
from serve_app.http.schemas import Problem

logger = logging.getLogger("ray.serve")


def install(api: FastAPI) -> None:
    """Registers the exception handlers."""
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(AppError, _app_error)
    api.add_exception_handler(Exception, _unforeseen)


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


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    """An unexpected error: the client sees only the request id, the log has the traceback."""
    logger.error("unexpected error", exc_info=error)
    return problem(request, AppError.status, AppError.code, "the service failed: report the request id to its operator")
