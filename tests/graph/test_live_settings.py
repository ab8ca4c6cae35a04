"""Changes of a replica's settings: it serves meanwhile, the newest wins, and what the store did not give is asked for again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from serve_app.graph import live_settings
from serve_app.graph.live_settings import LiveSettings
from serve_app.settings import DetectorSettings


class Replica:
    """What LiveSettings needs of a replica. `adopt` waits for `go`, and then gives the next of `outcomes`."""

    def __init__(self, *outcomes: str | Exception | None, started: bool = True) -> None:
        self.outcomes, self.started = list(outcomes), started
        self.go, self.tried = threading.Event(), list[str | None]()
        self.active: str | None = "first"
        self.shown: str | None = None  # as loading
        self.settings = LiveSettings(self.adopt, self)  # type: ignore[arg-type]

    def adopt(self, wanted: DetectorSettings) -> str | None:
        self.tried.append(wanted.weights)
        self.go.wait(60)
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, Exception):
            raise outcome
        self.started = True
        if not outcome:
            self.active = wanted.weights
        return outcome

    def announce(self, uri: str | None) -> None:
        self.shown = uri

    def settled(self) -> None:
        self.shown = None

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not true():
                await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counter:
        def inc(self) -> None:
            counted.append(1)

    counted.clear()
    monkeypatch.setattr(live_settings.metrics, "settings_refused_total", Counter)


counted: list[int] = []


def test_a_replica_serves_while_new_weights_load() -> None:
    async def scenario() -> None:
        replica = Replica()
        await replica.settings.change({"weights": "second"})  # returns, so Serve goes on sending requests
        await replica.until(lambda: replica.tried == ["second"])
        assert (replica.active, replica.shown) == ("first", "second")
        replica.go.set()
        await replica.until(lambda: replica.active == "second")
        await replica.until(lambda: replica.shown is None)

    asyncio.run(scenario())


def test_at_start_it_serves_nothing_until_they_are_loaded() -> None:
    async def scenario() -> None:
        replica = Replica(started=False)
        change = asyncio.create_task(replica.settings.change({"weights": "second"}))
        await replica.until(lambda: bool(replica.tried))
        assert not change.done()
        replica.go.set()
        await change
        assert replica.active == "second"

    asyncio.run(scenario())


def test_a_replica_that_starts_while_the_store_is_away_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_settings, "AGAIN_S", 0.05)

    async def scenario() -> None:
        replica = Replica("unreachable", "unreachable", started=False)  # it serves those before, says LiveWeights
        replica.go.set()
        await replica.settings.change({"weights": "second"})
        await replica.until(lambda: replica.active == "second")
        assert replica.tried == ["second"] * 3

    asyncio.run(scenario())


def test_the_newest_wins_and_those_between_are_left_out() -> None:
    async def scenario() -> None:
        replica = Replica()
        for weights in ("second", "third", "fourth"):
            await replica.settings.change({"weights": weights})
            await replica.until(lambda: replica.tried == ["second"])
        assert replica.shown == "fourth"
        replica.go.set()
        await replica.until(lambda: replica.active == "fourth")
        assert replica.tried == ["second", "fourth"]
        await replica.until(lambda: replica.shown is None)

    asyncio.run(scenario())


def test_what_the_store_did_not_give_is_asked_for_again_until_another_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_settings, "AGAIN_S", 0.05)

    async def scenario() -> None:
        replica = Replica("unreachable", "unreachable", None, *["unreachable"] * 100)
        replica.go.set()
        await replica.settings.change({"weights": "second"})
        await replica.until(lambda: replica.active == "second")
        assert replica.tried == ["second"] * 3
        await replica.settings.change({"weights": "never there"})
        await replica.until(lambda: replica.tried.count("never there") > 2)
        replica.outcomes.clear()
        await replica.settings.change({"weights": "third"})
        await replica.until(lambda: replica.active == "third")
        count = len(replica.tried)
        await asyncio.sleep(0.3)
        assert len(replica.tried) == count

    asyncio.run(scenario())


@pytest.mark.parametrize("reason", ["golden", RuntimeError("out of memory"), OSError("anything else")])
def test_what_is_refused_otherwise_is_not_tried_again(reason: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_settings, "AGAIN_S", 0.01)

    async def scenario() -> None:
        replica = Replica(reason)
        replica.go.set()
        await replica.settings.change({"weights": "second"})
        await replica.until(lambda: bool(replica.tried) and replica.shown is None)
        await asyncio.sleep(0.1)
        assert (replica.tried, replica.active) == (["second"], "first")
        await replica.settings.change({"weights": "third"})
        await replica.until(lambda: replica.active == "third")

    asyncio.run(scenario())
    assert len(counted) == isinstance(reason, Exception), "a refusal of weights is counted with its reason, elsewhere"


@pytest.mark.parametrize("started", [True, False])
def test_invalid_settings_change_nothing(started: bool) -> None:
    async def scenario() -> None:
        replica = Replica(started=started)
        replica.go.set()
        await replica.settings.change({"max_batch_size": -1})
        assert replica.tried == ([] if started else [None]), "a replica that starts takes the defaults"

    asyncio.run(scenario())
    assert counted == [1]
