"""A fault of our own: the client learns that it is ours and the request's id, and nothing else."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from fastapi import FastAPI

from serve_app import problems
from tests.test_errors import check


def test_an_unforeseen_error_tells_nothing_but_the_request_id(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = FastAPI()
    problems.install(api)

    @api.get("/")
    async def fail() -> None:
        raise RuntimeError("the secret of /etc/passwd")

    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            return await http.get("/", headers={"X-Request-ID": "42"})

    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    answer = asyncio.run(get())
    check(answer.status_code, answer.headers["content-type"], answer.json(), 500, "internal_error")
    assert answer.json()["request_id"] == "42"
    assert "secret" not in answer.text
    assert "the secret of /etc/passwd" in caplog.text, "the log has it"
