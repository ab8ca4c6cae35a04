"""`make compare`: the servers that it starts find what this service finds. LitServe and mosec need packages of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx
import pytest

from loadtests.compare import __main__ as compare
from loadtests.compare.recogniser import ours, ultralytics
from loadtests.service import NotStarted
from serve_app.vision.boxes import overlap
from serve_app.weights.identity import BUNDLED


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "PEERS", Path(sys.executable))


def test_both_engines_find_the_same(bus: bytes) -> None:
    theirs, own = (recognise(str(BUNDLED))(bus) for recognise in (ultralytics, ours))
    sure = [one for one in theirs if one["confidence"] >= 0.5]
    assert len(sure) >= 3
    for one in sure:
        boxes = [tuple(o["box"].values()) for o in own if (o["name"], o["class"]) == (one["name"], one["class"])]
        assert max(overlap(one["box"], box) for box in boxes) >= 0.9


def test_a_peer_is_started_measured_and_stopped(bus: bytes) -> None:
    with compare.started(compare.OTHERS["FastAPI"], "ours", str(BUNDLED), bus) as target:
        (one,), megabytes = compare.measured(target, [bus], [2], 1.0)
        assert one.errors == 0
        assert one.rate > 0
        assert sum(one.cpu_ms.values()) > 1
        assert megabytes > 100
    with pytest.raises(httpx.TransportError):
        httpx.get(target.url)


def test_a_peer_that_fails_says_why(bus: bytes) -> None:
    with (
        pytest.raises(NotStarted, match="no weights at"),
        compare.started(compare.OTHERS["FastAPI"], "ours", "none.pt", bus),
    ):
        pass


def test_litserve_gets_the_photo_in_json() -> None:
    content, media_type = compare.body(compare.Target("", 0, "", json=True), b"\xff")
    assert (json.loads(content), media_type) == ({"image": "/w=="}, "application/json")
