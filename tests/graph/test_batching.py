"""Requests that come together share a forward pass, and nobody pays for a neighbour's broken image."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve.batching import _BatchQueue

from loadtests.service import Service
from serve_app.graph.batch_admission import BatchAdmission
from tests.http.test_predict import same


def together(server: str, bodies: list[bytes]) -> list[httpx.Response]:
    with httpx.Client(base_url=server, timeout=60) as http, ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda b: http.post("/v1/predict", files={"file": b}), bodies))


def test_seven_right_answers_beside_a_broken_image(graph: Service, bus: bytes, zidane: bytes) -> None:
    alone = {photo: together(graph.url, [photo])[0].json()["images"][0] for photo in (bus, zidane)}
    bodies = [bus, zidane, bus, bus[:5000], zidane, bus, zidane, bus]
    largest = 0
    for _ in range(5):  # which requests meet in a batch is a matter of milliseconds; that some do is not
        answers = together(graph.url, bodies)
        assert [a.status_code for a in answers] == [200, 200, 200, 400, 200, 200, 200, 200]
        assert answers[3].json()["code"] == "corrupt_image"
        for body, answer in zip(bodies, answers, strict=True):
            if answer.status_code == 200:
                image = answer.json()["images"][0]
                same(alone[body], image)
                largest = max(largest, image["batch_size"])
    assert largest > 1


def test_batch_mates_keep_their_own_options(graph: Service, bus: bytes) -> None:
    def ask(c: float) -> tuple[int, list[float]]:
        with httpx.Client(base_url=graph.url, timeout=60) as http:
            answer = http.post("/v1/predict", params={"conf": c}, files={"file": bus}).json()
        image = answer["images"][0]
        return image["batch_size"], [r["confidence"] for r in image["results"]]

    largest = 0
    for _ in range(5):
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, [0.25, 0.8] * 8))
        for (_, low), (_, high) in zip(answers[::2], answers[1::2], strict=True):
            assert min(high) >= 0.8
            assert min(low) < 0.8
        largest = max(largest, *(size for size, _ in answers))
        if largest > 1:
            break
    assert largest > 1


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int, float], Any]]:
    """Behind Serve's own batching; it waits until it is `free`, and fails on `None`."""
    replica = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=100))
    monkeypatch.setattr(serve, "get_replica_context", lambda: replica)  # which only a replica has
    monkeypatch.delattr(_BatchQueue, "__del__")  # it makes an event loop and leaves it open, where none runs any more

    def made(lanes: int, size: int, wait_s: float) -> Any:
        class Engine:
            def __init__(self) -> None:
                self.admission, self.free, self.batches = BatchAdmission(lanes, size), asyncio.Event(), []

            async def __call__(self, image: int | None) -> int | None:
                async with self.admission.admitted(image, object()):
                    return await self.detect(image)

            @serve.batch(max_batch_size=size, batch_wait_timeout_s=wait_s, max_concurrent_batches=lanes)
            async def detect(self, batch: list[int | None]) -> list[int | None]:
                with self.admission.running(batch):
                    self.batches.append(batch)
                    await self.free.wait()
                    await asyncio.sleep(0.03)
                    if None in batch:
                        raise RuntimeError
                return batch

            async def come(self, *images: int | None) -> list[asyncio.Task[int | None]]:
                calls = [asyncio.create_task(self(image)) for image in images]
                await asyncio.sleep(0.01)
                return calls

        return Engine()

    yield made
    gc.collect()


@pytest.mark.parametrize("lanes", [1, 2])
def test_with_serves_own_batching(engine: Callable[[int, int, float], Any], lanes: int) -> None:
    """Of sixteen that come one after the other, those that meet a busy engine share batches."""

    async def main() -> list[list[int | None]]:
        made, calls = engine(lanes, 8, 0.0), []
        for image in range(16):
            calls += await made.come(image)
            while len(made.batches) < min(image + 1, lanes):  # the first ones have the engine before others come
                await asyncio.sleep(0.001)
        made.free.set()
        async with asyncio.timeout(10):
            assert await asyncio.gather(*calls) == list(range(16)), "each has its own answer"
        return made.batches

    first = [[image] for image in range(lanes)]
    full, rest = list(range(lanes, lanes + 8)), list(range(lanes + 8, 16))
    assert asyncio.run(main()) == [*first, full, rest]


def test_a_batch_that_fails_gives_its_lane_back(engine: Callable[[int, int, float], Any]) -> None:
    async def main() -> None:
        made = engine(1, 4, 0.0)
        (failing,) = await made.come(None)
        while not made.batches:  # the failing one has the engine before the good ones come
            await asyncio.sleep(0.001)
        good = await made.come(1, 2)
        made.free.set()
        async with asyncio.timeout(10):
            assert await asyncio.gather(*good) == [1, 2]
        assert isinstance(failing.exception(), RuntimeError)

    asyncio.run(main())


def test_one_that_comes_as_the_last_lane_is_taken_makes_one_small_batch_not_many(
    engine: Callable[[int, int, float], Any],
) -> None:
    """A member of the batch that forms leaves, and another takes its place: Serve counts both, and starts the second."""

    async def main() -> list[list[int]]:
        made = engine(2, 4, 0.005)
        made.free.set()
        calls = await made.come(0)
        await asyncio.sleep(0.01)  # the two lanes end at different times
        gone, *rest = (asyncio.create_task(made(image)) for image in range(1, 30))
        while not made.admission._forming:
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # in Serve's queue
        gone.cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(*calls, *rest)
        return made.batches

    small = [batch for batch in asyncio.run(main()) if len(batch) < 4]
    assert len(small) <= 4, "the first, the one that somebody left, the late one, and what may be left at the end"
