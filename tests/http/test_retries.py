"""A replica that dies costs a retry inside, not a client's error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OwnerDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError

from serve_app.errors import CorruptImage, ImageQuarantined, NotReady, Overloaded, Timeout
from serve_app.graph.autoscaling import QueueingTimer
from serve_app.graph.quarantine import Quarantine
from serve_app.http.ingress import RETRIES, Ingress
from serve_app.settings import PredictOptions

BOXES = SimpleNamespace(preprocess_s=0.0, inference_s=0.0, postprocess_s=0.0)


class Stage:
    """Raises these, one after the other, then answers."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors, self.calls = list(errors), 0

    def remote(self, *_: object) -> asyncio.Task[object]:
        async def call() -> object:
            self.calls += 1
            if self.errors:
                raise self.errors.pop(0)
            return BOXES

        return asyncio.ensure_future(call())


@pytest.fixture
def ingress(tmp_path: Path) -> Callable[[Stage], Any]:
    """An ingress whose last stage is the given one."""
    return lambda last: made_of(last, tmp_path)


def made_of(last: Stage, folder: Path) -> Any:
    made = Ingress.__new__(Ingress)
    made._preprocess, made._detect, made._postprocess = Stage(), Stage(), last
    made.counted, made._waits, made._quarantine = [], QueueingTimer(), Quarantine(folder)
    made._images = SimpleNamespace(inc=lambda tags: made.counted.append(tags["code"]))
    made._retries = SimpleNamespace(inc=lambda: made.counted.append("retry"))
    return made


def ask(made: Any, seconds: float = 60) -> object:
    async def run() -> object:
        return await made.recognise(b"", PredictOptions(), 1, time.time() + seconds)

    return asyncio.run(run())


def lost_input() -> RayTaskError:
    """The replica whose result was to be worked on has died."""
    return RayTaskError("stage", "", OwnerDiedError("00" * 28, None, "died"))


@pytest.mark.parametrize("error", [ActorDiedError, lost_input], ids=["its replica", "the replica before"])
def test_a_death_is_retried_and_counted_once(
    ingress: Callable[[Stage], Any], error: Callable[[], BaseException]
) -> None:
    made = ingress(Stage(error()))
    assert ask(made) is BOXES
    assert made.counted == ["retry", "ok"]


def test_retries_are_bounded(ingress: Callable[[Stage], Any]) -> None:
    made = ingress(Stage(*(ActorDiedError() for _ in range(10))))
    with pytest.raises(NotReady):
        ask(made)
    assert made._postprocess.calls == 1 + RETRIES
    assert made.counted == ["retry"] * RETRIES + ["not_ready"]


def test_a_photo_that_two_replicas_died_of_is_not_tried_on_a_third(ingress: Callable[[Stage], Any]) -> None:
    made = ingress(Stage(died("a1"), died("a2"), died("a3")))
    with pytest.raises(ImageQuarantined):
        ask(made)
    assert made._postprocess.calls == 2
    assert made.counted == ["retry", "retry", "image_quarantined"]


def died(actor: str) -> ActorDiedError:
    error = ActorDiedError()
    error.actor_id = actor
    return error


def test_nothing_is_retried_for_a_client_that_has_gone(ingress: Callable[[Stage], Any]) -> None:
    made = ingress(Stage(ActorDiedError(), ActorDiedError()))
    with pytest.raises(Timeout):
        ask(made, seconds=-1)
    assert made._postprocess.calls == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        pytest.param(RayTaskError("stage", "", CorruptImage("damaged")), CorruptImage, id="a bad image"),
        pytest.param(BackPressureError(num_queued_requests=1, max_queued_requests=1), Overloaded, id="a full queue"),
    ],
)
def test_what_would_fail_again_is_not_retried(
    ingress: Callable[[Stage], Any], error: BaseException, told: type[Exception]
) -> None:
    made = ingress(Stage(error))
    with pytest.raises(told):
        ask(made)
    assert made._postprocess.calls == 1


def test_what_is_live_is_asked_again_too(ingress: Callable[[Stage], Any]) -> None:
    made = ingress(Stage())
    made._detect = SimpleNamespace(serving=Stage(ActorDiedError()))
    assert asyncio.run(made.serving()) is BOXES
    assert made.counted == ["retry"]
