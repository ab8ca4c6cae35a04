"""A fault of our own: the client learns that it is ours and the request's id, and nothing else."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from serve_app.http import problems
from serve_app.http.api import FixedHeaders
from serve_app.http.request_log import RequestLog
from tests.http.test_errors import check


def test_an_unforeseen_error_tells_nothing_but_the_request_id(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = FastAPI()
    problems.install(api)
    api.add_middleware(CORSMiddleware, allow_origins=["https://our.test"])
    api.add_middleware(FixedHeaders)
    api.add_middleware(RequestLog, sample=0.0)

    @api.get("/v1/fail")
    async def fail() -> None:
        raise RuntimeError("the secret of /etc/passwd")

    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            return await http.get("/v1/fail", headers={"X-Request-ID": "42", "Origin": "https://our.test"})

    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    caplog.set_level(logging.INFO, "ray.serve")
    answer = asyncio.run(get())
    check(answer.status_code, answer.headers["content-type"], answer.json(), 500, "internal_error")
    assert answer.json()["request_id"] == "42"
    assert "secret" not in answer.text
    assert answer.headers["access-control-allow-origin"] == "https://our.test", "a page may read this answer, too"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "the secret of /etc/passwd" in caplog.text, "the log has it"
    assert "GET /v1/fail 500 internal_error" in caplog.text, "and its line says whose fault it was"
