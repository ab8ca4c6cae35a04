"""Batches grow while the engine is busy, and nobody who leaves keeps a place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from serve_app.graph.batch_admission import BatchAdmission


class Batching:
    """`@serve.batch` with no wait: what came since the last look is a batch; the engine is held until `release`."""

    def __init__(self, admission: BatchAdmission) -> None:
        self.admission, self.engine = admission, asyncio.Semaphore(0)
        self.arrived: list[tuple[str, asyncio.Future[None]]] = []
        self.batches: list[list[str]] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def image(self, name: str) -> None:
        async with self.admission.admitted(name, name[0]):
            done = asyncio.get_running_loop().create_future()
            self.arrived.append((name, done))
            await done

    def come(self, *names: str) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.image(name)) for name in names]

    async def look(self, most: int = 9) -> None:
        """Closes a batch, if somebody came, and starts it."""
        await settle()
        batch = [one for one in self.arrived if not one[1].cancelled()][:most]
        self.arrived = [one for one in self.arrived if one not in batch]
        if batch:
            task = asyncio.create_task(self.run(batch))
            self.tasks.add(task)
            await settle()

    async def run(self, batch: list[tuple[str, asyncio.Future[None]]]) -> None:
        names = [name for name, _ in batch]
        self.batches.append(names)
        with self.admission.running(names):
            await self.engine.acquire()
        for _, done in batch:
            done.cancelled() or done.set_result(None)

    async def release(self) -> None:
        self.engine.release()
        await settle()
        await self.look()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run(test: Callable[[Batching], Awaitable[None]], lanes: int = 1, size: int = 4) -> list[list[str]]:
    """The batches that came of it."""

    async def main() -> list[list[str]]:
        batching = Batching(BatchAdmission(lanes, size))
        await test(batching)
        return batching.batches

    return asyncio.run(main())


def test_who_comes_while_the_engine_is_busy_goes_in_together_in_order() -> None:
    async def test(batching: Batching) -> None:
        batching.come("a")
        await batching.look()
        for name in "bcdefg":
            batching.come(name)
            await batching.look()
        assert batching.arrived == [], "nobody is in a batch that cannot start"
        await batching.release()
        await batching.release()

    assert run(test) == [["a"], ["b", "c", "d", "e"], ["f", "g"]]


def test_a_free_lane_takes_who_is_there() -> None:
    async def test(batching: Batching) -> None:
        for name in "abcd":
            batching.come(name)
            await batching.look()
        await batching.release()

    assert run(test, lanes=2) == [["a"], ["b"], ["c", "d"]]


def test_a_batch_of_one_at_a_time() -> None:
    async def test(batching: Batching) -> None:
        batching.come(*"abc")
        for _ in range(3):
            await batching.look()
        await batching.release()

    assert run(test, lanes=2, size=1) == [["a"], ["b"], ["c"]]


def test_who_leaves_keeps_no_place() -> None:
    """While waiting for a turn, with the turn just given, and in the batch that forms."""

    async def test(batching: Batching) -> None:
        forming = batching.come("a", "b")
        await settle()
        for task in forming:
            task.cancel()
        await batching.look()
        assert batching.batches == []
        batching.come("c")
        await batching.look()
        waiting, given = batching.come("d", "e")
        await settle()
        waiting.cancel()
        batching.engine.release()
        while not batching.admission._forming:
            await asyncio.sleep(0)
        given.cancel()
        await batching.look()
        batching.come(*"fghi")
        await batching.look()

    assert run(test, size=2) == [["c"], ["f", "g"]], "two places are free again"


def test_who_waits_moves_up_when_somebody_leaves_the_batch_that_forms() -> None:
    async def test(batching: Batching) -> None:
        first, _ = batching.come("a", "b")
        await settle()
        first.cancel()
        await settle()
        await batching.look()

    assert run(test, size=1) == [["b"]]


def test_a_batch_that_all_have_left_gives_its_lane_back() -> None:
    async def test(batching: Batching) -> None:
        (gone,) = batching.come("a")
        await batching.look()
        batching.come("b")
        gone.cancel()
        await settle()
        await batching.release()

    assert run(test) == [["a"], ["b"]]


def test_a_late_one_has_the_next_lane_and_no_more() -> None:
    """The two after the first were let in together, but Serve closed the batch before the second of them came."""

    async def test(batching: Batching) -> None:
        batching.come("a")
        await batching.look()
        batching.come("b", "c")
        await batching.look(most=1)
        batching.come("d")
        await settle()
        assert [name for name, _ in batching.arrived] == ["c"]
        await batching.release()
        await batching.release()

    assert run(test, lanes=2) == [["a"], ["b"], ["c"], ["d"]]


def test_a_late_one_that_leaves_keeps_no_lane() -> None:
    async def test(batching: Batching) -> None:
        _, late = batching.come("a", "b")
        await batching.look(most=1)
        batching.come("c")
        late.cancel()
        await batching.release()

    assert run(test) == [["a"], ["c"]]


def test_a_larger_batch_from_the_next_one_on() -> None:
    async def test(batching: Batching) -> None:
        batching.come("a")
        await batching.look()
        batching.come(*"bcde")
        batching.admission.size = 3
        await batching.release()

    assert run(test, size=1) == [["a"], ["b", "c", "d"]]


def test_callers_take_turns() -> None:
    """One that brings four images, a1 to a4, holds up those that come later by one image each."""

    async def test(batching: Batching) -> None:
        batching.come("x")
        await batching.look()
        batching.come("a1", "a2", "a3", "a4")
        await batching.look()
        batching.come("b", "c1", "c2")
        for _ in range(8):
            await batching.release()

    assert run(test, size=1) == [["x"], ["a1"], ["b"], ["c1"], ["a2"], ["c2"], ["a3"], ["a4"]]


def test_who_leaves_is_forgotten_at_once() -> None:
    """While the engine is busy, not only when the turn comes: a photo's tiles are 0.3 GB."""

    async def test(batching: Batching) -> None:
        batching.come("x")
        await batching.look()
        leaving = batching.come("a1", "a2", "a3")
        await settle()
        assert list(batching.admission._waiting) == ["a"]
        for task in leaving:
            task.cancel()
        await settle()
        assert batching.admission._waiting == {}
        await batching.release()

    assert run(test, size=1) == [["x"]]


def test_a_caller_that_leaves_gives_up_all_its_turns() -> None:
    async def test(batching: Batching) -> None:
        batching.come("x")
        await batching.look()
        leaving = batching.come("a1", "a2", "a3")
        batching.come("b")
        await batching.look()
        for task in leaving:
            task.cancel()
        for _ in range(3):
            await batching.release()

    assert run(test, size=1) == [["x"], ["b"]]
