"""The application that delays an upgrade: it starts once every node has been healthy for a while without a break."""

from __future__ import annotations

import http.server
import time

import httpx
import pytest

from loadtests.service import Service, free_port, status
from serve_app.ops import rollout_gate
from serve_app.ops.rollout_gate import GateSettings, RolloutGate, healthy
from tests.conftest import eventually, http_server

ASKED: list[tuple[float, int]] = []  # when, and what was answered


class Node(http.server.BaseHTTPRequestHandler):
    """HAProxy of a node that becomes healthy, is not for a moment, and is again."""

    def do_GET(self) -> None:
        status = 200 if len(ASKED) in (3, 4, 5) or len(ASKED) > 8 else 503
        ASKED.append((time.monotonic(), status))
        self.send_response(status if self.path == "/-/healthz" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_it_waits_until_the_node_is_healthy_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_gate, "CHECK_S", 0.1)
    monkeypatch.setattr(rollout_gate, "addresses", lambda: ["127.0.0.1"])
    with http_server(Node) as url:
        RolloutGate(GateSettings(port=httpx.URL(url).port or 0, healthy_s=0.5))
    last_failure = max(at for at, status in ASKED if status == 503)
    assert ASKED[3][1] == 200 and len(ASKED) > 8, "three good answers were not enough"
    assert time.monotonic() - last_failure >= 0.5


def test_a_node_that_does_not_answer_is_not_healthy() -> None:
    assert not healthy(f"http://127.0.0.1:{free_port()}/-/healthz")


def test_serve_runs_it_when_the_nodes_are_ready(graph: Service) -> None:
    eventually(lambda: status(graph, "rollout-gate")["status"] == "RUNNING")
    assert status(graph)["status"] == "RUNNING"
    routes = httpx.get(f"{graph.url}/-/routes").json()
    assert routes == {"/": "recognition"}, "it has no route of its own"
