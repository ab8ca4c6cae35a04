"""A hung engine is noticed, a busy one is left alone."""

from __future__ import annotations

import asyncio
import threading

import pytest

from serve_app.graph import engine_watchdog
from serve_app.graph.engine_watchdog import EngineHung, Watchdog


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_watchdog, "HUNG_S", 0.2)
    monkeypatch.setattr(engine_watchdog, "QUIET_S", 0.1)


def test_traffic_is_proof_enough() -> None:
    async def scenario() -> None:
        observed = Watchdog()
        with observed.running():
            await asyncio.sleep(0.15)
            await asyncio.sleep(0)
        await observed.check(pytest.fail)

    asyncio.run(scenario())


def test_batches_that_all_fail_are_no_proof() -> None:
    async def scenario() -> None:
        observed, asked = Watchdog(), threading.Event()
        await asyncio.sleep(0.15)
        with observed.running():
            await observed.check(asked.set)
        assert asked.is_set()

    asyncio.run(scenario())


def test_without_traffic_the_engine_is_asked() -> None:
    async def scenario() -> int:
        asked, observed = 0, Watchdog()

        def probe() -> None:
            nonlocal asked
            asked += 1

        await asyncio.sleep(0.15)
        await observed.check(probe)
        await observed.check(probe)
        return asked

    assert asyncio.run(scenario()) == 1


def test_a_batch_that_never_ends_is_told() -> None:
    async def scenario() -> None:
        observed = Watchdog()
        with observed.running():
            await asyncio.sleep(0.25)
            await observed.check(pytest.fail)

    with pytest.raises(EngineHung, match="running for"):
        asyncio.run(scenario())


def test_an_engine_that_does_not_answer_the_probe_is_told() -> None:
    release = threading.Event()

    async def scenario() -> None:
        observed = Watchdog()
        await asyncio.sleep(0.15)
        try:
            await observed.check(release.wait)
        finally:
            release.set()

    with pytest.raises(EngineHung, match="has not answered"):
        asyncio.run(scenario())


def test_an_engine_that_fails_the_probe_is_told() -> None:
    async def scenario() -> None:
        observed = Watchdog()
        await asyncio.sleep(0.15)

        def broken() -> None:
            raise RuntimeError("CUDA error")

        await observed.check(broken)

    with pytest.raises(RuntimeError, match="CUDA"):
        asyncio.run(scenario())
