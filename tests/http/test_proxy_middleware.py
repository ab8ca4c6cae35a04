"""The middlewares inside Serve's proxy, around a small ASGI application."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from serve_app.http.proxy_middleware import LimitPredictions, middlewares
from serve_app.ops.ray_environment import VARIABLES
from tests.http.test_errors import check


def ask(
    path: str, answer: Response, headers: dict[str, str] | None = None, seen: list[bytes] | None = None
) -> httpx.Response:
    """What a client gets when Serve's proxy, inside our middlewares, gives this answer."""

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        if seen is not None:
            seen.extend(name for name, _ in scope["headers"])
        await answer(scope, receive, send)

    wrapped = proxy
    for middleware in middlewares():
        wrapped = middleware.cls(wrapped)

    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(wrapped), base_url="http://service") as http:
            return await http.get(path, headers=headers)

    return asyncio.run(get())


@pytest.mark.parametrize(
    ("name", "value", "passes"),
    [
        ("x-request-timeout-seconds", "0", False),
        ("X-Request-Timeout-Seconds", "0.001", False),
        ("x-request-disconnect-disabled", "?1", False),
        ("x-session-id", "a", False),
        ("x-request-id", "abc-1", True),
        ("x-request-id", "a b\tc", False),
        ("x-request-id", "a" * 129, False),
        ("x-other", "1", True),
    ],
)
def test_clients_do_not_steer(name: str, value: str, passes: bool) -> None:
    seen: list[bytes] = []
    ask("/", PlainTextResponse("ok"), {name: value}, seen)
    assert (name.lower().encode() in seen) == passes


class NoAnswer(Response):
    """What Serve's proxy does when the replica dies that has the request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pass


def test_a_request_whose_replica_died_is_sent_again_or_told_to_come_again() -> None:
    answer = ask("/v1/predict", NoAnswer(), {"x-request-id": "7"})
    check(answer.status_code, answer.headers["content-type"], answer.json(), 502, "not_ready")
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["request_id"] == "7"
    assert "502" in VARIABLES["RAY_SERVE_HAPROXY_RETRY_ON"].split()


@pytest.mark.parametrize(("status", "code"), [(503, "overloaded"), (408, "timeout"), (500, "internal_server_error")])
def test_plain_errors_become_problems(status: int, code: str) -> None:
    plain = PlainTextResponse("queue full", status, {"x-request-id": "7"})
    answer = ask("/v1/predict", plain)
    check(answer.status_code, answer.headers["content-type"], answer.json(), status, code)
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "7"
    assert answer.headers.get("retry-after") == ("1" if status == 503 else None)
    assert answer.headers["access-control-allow-origin"] == "*", "a page may read why it was refused"


def test_the_rest_passes_untouched() -> None:
    assert ask("/", PlainTextResponse("fine")).text == "fine"
    assert ask("/", JSONResponse({"code": "x"}, 400)).json() == {"code": "x"}
    assert ask("/-/healthz", PlainTextResponse("no", 503)).text == "no"


def test_predictions_are_bounded_and_everything_else_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.http.proxy_middleware.MAX_PREDICTIONS", 2)
    go = asyncio.Event()
    answered = 0

    async def busy(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal answered
        if scope["method"] == "POST":
            await go.wait()
            answered += 1
        await PlainTextResponse("done")(scope, receive, send)

    async def scenario() -> tuple[list[httpx.Response], httpx.Response, httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(LimitPredictions(busy))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            running = [asyncio.create_task(http.post("/v1/predict", content=b"x" * 100_000)) for _ in range(2)]
            await asyncio.sleep(0.01)
            refused = await http.post("/v1/predict", content=b"x" * 100_000, headers={"x-request-id": "7"})
            probe = await http.get("/readyz")
            go.set()
            return await asyncio.gather(*running), refused, probe, await http.post("/v1/predict")

    done, refused, probe, after = asyncio.run(scenario())
    assert [answer.status_code for answer in (*done, probe, after)] == [200] * 4
    check(refused.status_code, refused.headers["content-type"], refused.json(), 503, "overloaded")
    assert (refused.headers["retry-after"], refused.headers["x-request-id"]) == ("1", "7")
    assert answered == 3, "what was refused never came further"


def test_what_is_no_http_is_refused(server: str) -> None:
    """By HAProxy, in its own words."""
    address = httpx.URL(server)
    with socket.create_connection((address.host, address.port or 80), timeout=10) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nthis is no header\r\n\r\n")
        assert connection.makefile("rb").readline().split()[1] == b"400"


@pytest.mark.parametrize("chunks", [34, None], ids=["longer than is ever read", "never ends"])
def test_a_refused_body_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, chunks: int | None) -> None:
    """All middlewares in their real order; the answer comes although the body does not end."""
    monkeypatch.setattr("serve_app.http.proxy_middleware.MAX_PREDICTIONS", 0)
    monkeypatch.setattr("serve_app.http.proxy_middleware.DRAIN_S", 0.3)
    wrapped: Any = None
    for middleware in middlewares():
        wrapped = middleware.cls(wrapped)
    sent: list[Any] = []
    left = chunks

    async def receive() -> dict[str, Any]:
        nonlocal left
        if left is None or left == 0:
            await asyncio.Event().wait()
        left -= 1
        return {"type": "http.request", "body": b"x" * 1_000_000, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": []}
    asyncio.run(asyncio.wait_for(wrapped(scope, receive, send), 5))
    assert sent[0]["status"] == 503
