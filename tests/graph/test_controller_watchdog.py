"""A silent controller is asked for a sign of life, and killed only if it gives none. The drill freezes a real one."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from unittest import mock

import pytest
import ray
from ray.exceptions import ActorDiedError, GetTimeoutError

from serve_app.graph import controller_watchdog
from serve_app.graph.controller_watchdog import ControllerWatchdog, replace_frozen


@pytest.mark.parametrize(
    ("error", "kills"),
    [(None, 0), (GetTimeoutError("no answer"), 1), (ActorDiedError(), 0), (ValueError("no such actor"), 0)],
)
def test_only_a_frozen_one_is_killed(monkeypatch: pytest.MonkeyPatch, error: Exception | None, kills: int) -> None:
    killed: list[bool] = []

    def get(_: object, timeout: float) -> None:
        assert timeout == controller_watchdog.ANSWER_S
        if error:
            raise error

    controller = mock.Mock()
    monkeypatch.setattr(ray, "get_actor", lambda *_, **__: controller)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "kill", lambda _, no_restart: killed.append(no_restart))
    with suppress(ActorDiedError, ValueError):
        replace_frozen()
    controller.check_alive.options.assert_called_with(max_task_retries=0)
    assert killed == [False] * kills, "Ray starts another"


def test_it_is_asked_only_when_it_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(controller_watchdog, "SILENT_S", 0.3)

    def ask() -> None:
        asked.append(loop.time())
        raise RuntimeError("the GCS is away")

    monkeypatch.setattr(controller_watchdog, "replace_frozen", ask)

    async def scenario() -> None:
        watchdog = ControllerWatchdog()
        watching = asyncio.create_task(watchdog.watch())
        for _ in range(20):
            watchdog.heard = loop.time()
            await asyncio.sleep(0.05)
        assert asked == []
        async with asyncio.timeout(60):
            while len(asked) < 3:  # whatever happens, it goes on watching
                await asyncio.sleep(0.05)
        watching.cancel()

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        runner.run(scenario())
