"""Middlewares around Serve's HTTP servers (its proxy, and that of each ingress replica). They run before Serve's code.

Serve loads them by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.http.proxy_middleware:middlewares, which is set
where Ray is started.

They do what the application cannot do. Clients may steer Ray Serve by headers: `x-request-timeout-seconds: 0` disables
the server's timeout, and any `x-request-id` goes to the logs. Serve reads bodies ahead without a limit. And Serve's own
refusals (a full ingress queue) are plain text, unlike all other errors of the service.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app import metrics
from serve_app.http.schemas import OPEN_TO_PAGES, Problem
from serve_app.settings import MAX_PREDICTIONS, PROXY_WINDOW_BYTES, REQUEST_ID

STEERING_HEADERS = (
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"x-session-id",
    b"serve_multiplexed_model_id",
)
VALID_REQUEST_ID = re.compile(REQUEST_ID.encode())
UNTHROTTLED_BYTES = 1_000_000  # an ordinary photo is never slowed down
PROXY_BYTES_PER_S = 200e6
DRAIN_S = 2.0  # longest time to read a refused body; a slower client gets its response before its body ends
CODES = {408: "timeout", 502: "not_ready", 503: "overloaded"}  # our codes for the statuses that Serve itself returns


class DropSteeringHeaders:
    """Drops headers that would change how Serve handles a request, and invalid request ids."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] == "http":
            scope["headers"] = [
                (name, value)
                for name, value in scope["headers"]
                if name not in STEERING_HEADERS and (name != b"x-request-id" or VALID_REQUEST_ID.fullmatch(value))
            ]
        await self.app(scope, receive, send)


class LimitPredictions:
    """Refuses a POST with 503 while MAX_PREDICTIONS others run. HAProxy, where it is in front, refuses most before."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self._running, self._images = app, 0, metrics.images_total()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
        elif self._running >= MAX_PREDICTIONS:
            self._images.inc(tags={"code": "overloaded"})
            with suppress(TimeoutError):  # if the body stays unread, the client sees a reset instead of the response
                await asyncio.wait_for(_drain(receive), DRAIN_S)
            await _send_problem(
                send, HTTPStatus.SERVICE_UNAVAILABLE, Headers(raw=scope["headers"]).get("x-request-id", "")
            )
        else:
            self._running += 1
            try:
                await self.app(scope, receive, send)
            finally:
                self._running -= 1


class LimitBodies:
    """Reads a body at no more than 200 MB/s, and not more than PROXY_WINDOW_BYTES (32 MB) of it.

    Serve's proxy reads ahead of the ingress without a limit: 100 MB in chunks took 161 MB of memory before the 413.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        taken = 0

        async def receive_some() -> Message:
            nonlocal taken
            if taken > PROXY_WINDOW_BYTES:
                await asyncio.Event().wait()  # stops reading; Serve cancels this once the response is sent
            message = await receive()
            size = len(message.get("body", b""))
            taken += size
            if taken > UNTHROTTLED_BYTES:
                await asyncio.sleep(size / PROXY_BYTES_PER_S)
            return message

        await self.app(scope, receive_some, send)


class ProblemResponses:
    """Replaces an error's plain text by a problem document, and answers 502 where Serve returns without an answer.

    Serve's proxy does that when the replica died that had the request. HAProxy sends the request again after a 502.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        replaced = answered = False

        async def send_problem(message: Message) -> None:
            nonlocal replaced, answered
            answered = True
            if message["type"] == "http.response.start" and message["status"] >= HTTPStatus.BAD_REQUEST:
                headers = Headers(raw=message.get("headers", []))
                if headers.get("content-type", "text/plain").startswith("text/plain"):
                    replaced = True
                    await _send_problem(send, HTTPStatus(message["status"]), headers.get("x-request-id", ""))
            if not replaced:
                await send(message)

        own_endpoint = scope.get("path", "").startswith("/-/")  # Serve's own: machines read its plain text
        await self.app(scope, receive, send if own_endpoint else send_problem)
        if scope["type"] == "http" and not own_endpoint and not answered:
            await _send_problem(send, HTTPStatus.BAD_GATEWAY, Headers(raw=scope["headers"]).get("x-request-id", ""))


async def _drain(receive: Receive) -> None:
    """Reads and discards a body, but not more than PROXY_WINDOW_BYTES."""
    taken, more = 0, True
    while more and taken <= PROXY_WINDOW_BYTES:
        message = await receive()
        taken, more = taken + len(message.get("body", b"")), message.get("more_body", False)


async def _send_problem(send: Send, status: HTTPStatus, request_id: str) -> None:
    code = CODES.get(status, status.name.lower())
    body = Problem(title=status.phrase, status=status, code=code, detail=status.description, request_id=request_id)
    content = body.model_dump_json().encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(content)).encode()),
        (b"x-request-id", request_id.encode()),
    ]
    if status in CODES or status >= HTTPStatus.INTERNAL_SERVER_ERROR:  # others are the application's, which knows CORS
        headers += [(name.lower().encode(), value.encode()) for name, value in OPEN_TO_PAGES.items()]
    if status in (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE):
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def middlewares() -> list[Middleware]:
    """The middlewares, innermost first: the last one sees a request first. Serve calls this."""
    innermost_first = DropSteeringHeaders, LimitPredictions, LimitBodies, ProblemResponses
    return [Middleware(one) for one in innermost_first]
