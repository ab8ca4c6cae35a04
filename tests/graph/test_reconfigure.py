"""`user_config` changes live: no replica restarts, and a bad one changes nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil

from loadtests.service import Service, command, deploy, detector
from tests.conftest import eventually


def change(service: Service, content: dict[str, Any], user_config: dict[str, Any]) -> None:
    detector(content)["user_config"] = user_config
    deploy(service, content)


def detectors(service: Service) -> set[int]:
    return {p.pid for p in psutil.Process(service.pid).children(recursive=True) if "Detector" in command(p)}


def largest_batch(service: Service, photo: bytes) -> int:
    with httpx.Client(base_url=service.url, timeout=60) as http, ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda _: http.post("/v1/predict", files={"file": photo}), range(24))
        return max(answer.json()["images"][0]["batch_size"] for answer in answers)


def test_batch_settings_change_live_and_bad_ones_are_refused(
    graph: Service, graph_config: dict[str, Any], bus: bytes
) -> None:
    live, content = graph, graph_config
    at_first = detector(content)["user_config"]
    before = detectors(live)
    assert len(before) == 1
    eventually(lambda: largest_batch(live, bus) > 1)

    change(live, content, {"max_batch_size": 1, "batch_wait_timeout_s": 0.0})
    eventually(lambda: any("max_batch_size=1 " in line for line in live.lines))
    assert largest_batch(live, bus) == 1

    for bad in ({"max_batch_size": -1}, {"batch_wait_timeout_s": 5}, {"max_batch": 4}):
        seen = len(live.lines)
        change(live, content, bad)
        eventually(lambda seen=seen: any("user_config refused" in line for line in live.lines[seen:]))
        assert largest_batch(live, bus) == 1, "the previous settings stay active"
    assert detectors(live) == before, "no replica was restarted"
    change(live, content, at_first)
    eventually(lambda: largest_batch(live, bus) > 1)
