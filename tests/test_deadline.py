"""Nobody works for an answer that nobody awaits."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from serve_app import deadline
from serve_app.errors import InvalidParameter, Timeout
from serve_app.graph.batch_admission import BatchAdmission
from serve_app.graph.detector import Detector, QueuedInput
from serve_app.graph.engine_watchdog import Watchdog
from serve_app.graph.payloads import Prepared
from serve_app.settings import PredictOptions
from serve_app.vision.image import Letterbox
from serve_app.vision.tasks.by_name import TASKS
from serve_app.vision.tasks.task import Output
from tests.http.test_errors import check

BOX = Letterbox(1.0, 1.0, 0, 0, 32, 32)


@pytest.mark.parametrize(("given", "budget"), [(None, 30), ("1", 0.001), ("2500", 2.5), ("60000", 30)])
def test_the_client_may_wait_less_than_the_service_would(given: str | None, budget: float) -> None:
    assert deadline.budget_s(given, 30) == budget


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "", "soon", "1" * 10, "\u0661"])
def test_a_deadline_that_is_none_is_said(given: str) -> None:
    with pytest.raises(InvalidParameter, match=deadline.HEADER):
        deadline.budget_s(given, 30)


def test_over_http(client: httpx.Client, bus: bytes) -> None:
    answers = [
        client.post("/v1/predict", files={"file": bus}, headers={deadline.HEADER: v}) for v in ("1", "never", "60000")
    ]
    late, wrong, good = answers
    check(late.status_code, late.headers["content-type"], late.json(), 504, "timeout")
    check(wrong.status_code, wrong.headers["content-type"], wrong.json(), 422, "invalid_parameter")
    assert good.status_code == 200


def test_a_moment_that_has_passed_stops_a_stage() -> None:
    deadline.check(time.time() + 1)
    with pytest.raises(Timeout):
        deadline.check(time.time() - 0.001)


class Network:
    """Counts what it is given, and notes how many batches have a lane then."""

    task = TASKS["detect"]

    def __init__(self, admission: BatchAdmission) -> None:
        self.seen, self.running, self._admission = 0, set[int](), admission

    def __call__(self, squares: np.ndarray) -> list[Output]:
        self.seen += len(squares)
        self.running.add(self._admission._running)
        time.sleep(0.05)
        return [(np.zeros((6, 21), np.float32),)] * len(squares)


@pytest.fixture
def detector() -> Any:
    """A Detector around that network, without Ray."""
    made = Detector.__new__(Detector)
    made._admission = BatchAdmission(concurrent_batches=2, size=8)
    made._weights = SimpleNamespace(
        current=SimpleNamespace(engine=Network(made._admission), weights=SimpleNamespace(class_names=("a",)))
    )
    made._seconds = made._queue = SimpleNamespace(observe=lambda *_: None)
    made._engine = SimpleNamespace(inc=lambda *_: None)
    made._watchdog, made._replica = Watchdog(), "a"
    made._tiles, made._most_tiles = 0, 100
    images: list[QueuedInput] = []

    async def detect(queued: QueuedInput) -> None:
        """Serve's batching, which needs a replica around it: all that come in 20 ms."""
        images.append(queued)
        await asyncio.sleep(0.02)
        if images:
            batch, images[:] = list(images), []
            await Detector._detect.__wrapped__(made, batch)
        await asyncio.sleep(0.1)

    made._detect = detect
    return made


def image(seconds: float) -> Prepared:
    one = np.zeros((32, 32, 3), np.uint8)
    return Prepared([one], [BOX], None, PredictOptions(), None, 0.0, time.time() + seconds)


def test_the_network_never_sees_what_is_late_or_whose_caller_has_gone(detector: Any) -> None:
    async def scenario() -> list[object]:
        tasks = [asyncio.create_task(detector(image(s))) for s in (60, -1, 60, 60)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    first, late, gone, last = asyncio.run(scenario())
    assert first.batch_size == last.batch_size == 2
    assert isinstance(late, Timeout)
    assert isinstance(gone, asyncio.CancelledError)
    network = detector._weights.current.engine
    assert (network.seen, network.running) == (2, {1})
    assert not detector._admission._running


def test_a_batch_that_nobody_awaits_does_not_run(detector: Any) -> None:
    with pytest.raises(Timeout):
        asyncio.run(detector(image(-1)))
    assert detector._weights.current.engine.seen == 0
