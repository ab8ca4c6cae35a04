"""What runs inside Serve's HTTP proxy, before it looks at a request.

Serve finds it by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.proxy:middlewares, set where Ray is started.

Three things can be done nowhere else. Clients may steer Ray Serve by headers: `x-request-timeout-seconds: 0` lifts the
server's timeout, and any `x-request-id` goes to the logs. It reads bodies ahead without a bound. And what it refuses by
itself (a full ingress queue) is plain text, unlike all our errors.
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
from serve_app.schemas import Problem
from serve_app.settings import MAX_PREDICTIONS, PROXY_WINDOW_BYTES, REQUEST_ID

STEERING = (
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"x-session-id",
    b"serve_multiplexed_model_id",
)
CLIENTS_ID = re.compile(REQUEST_ID.encode())
FREE_BYTES = 1_000_000  # an ordinary photo is never slowed down
PROXY_BYTES_PER_S = 200e6
DRAIN_S = 2.0  # of a body that is refused; a slow one gets its answer before it has ended
CODES = {408: "timeout", 503: "overloaded"}  # what the proxy itself answers, as we call it


class ClientsDoNotSteer:
    """Drops the headers by which a client would change Serve's handling of its request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            scope["headers"] = [
                (name, value)
                for name, value in scope["headers"]
                if name not in STEERING and (name != b"x-request-id" or CLIENTS_ID.fullmatch(value))
            ]
        await self.app(scope, receive, send)


class PredictionsAreBounded:
    """Refuses a prediction while MAX_PREDICTIONS others are in work: what HAProxy, if there is one, has let through."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self._running, self._images = app, 0, metrics.images_total()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
        elif self._running >= MAX_PREDICTIONS:
            self._images.inc(tags={"code": "overloaded"})
            with suppress(TimeoutError):  # unread, the client would see a reset instead of the answer
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


class BodiesAreBounded:
    """Reads a body at no more than 200 MB/s, and no more than PROXY_WINDOW_BYTES of it, while the ingress refuses it.

    Serve's proxy reads ahead of the ingress without a bound: 100 MB sent in chunks cost 161 MB before the 413.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        taken = 0

        async def receive_some() -> Message:
            nonlocal taken
            if taken > PROXY_WINDOW_BYTES:
                await asyncio.Event().wait()  # until the answer is out and Serve cancels its reading
            message = await receive()
            size = len(message.get("body", b""))
            taken += size
            if taken > FREE_BYTES:
                await asyncio.sleep(size / PROXY_BYTES_PER_S)
            return message

        await self.app(scope, receive_some, send)


class ProblemsOnly:
    """Replaces the body of an error that is plain text by the problem document."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        replaced = False

        async def send_problem(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] >= HTTPStatus.BAD_REQUEST:
                headers = Headers(raw=message.get("headers", []))
                if headers.get("content-type", "text/plain").startswith("text/plain"):
                    replaced = True
                    await _send_problem(send, HTTPStatus(message["status"]), headers.get("x-request-id", ""))
            if not replaced:
                await send(message)

        healthz = scope.get("path", "").startswith("/-/")  # Serve's own endpoints are read by machines as they are
        await self.app(scope, receive, send if healthz else send_problem)


async def _drain(receive: Receive) -> None:
    """Reads a body and forgets it; what is longer than PROXY_WINDOW_BYTES not to its end."""
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
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def middlewares() -> list[Middleware]:
    """What Serve's proxy puts around itself."""
    mine = ClientsDoNotSteer, PredictionsAreBounded, BodiesAreBounded, ProblemsOnly
    return [Middleware(one) for one in mine]
