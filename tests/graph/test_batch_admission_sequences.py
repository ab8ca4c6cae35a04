"""Any sequence of arrivals, departures, resizes and slow batches: nobody is forgotten, and no limit is passed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from serve_app.graph.batch_admission import BatchAdmission
from tests.graph.test_batch_admission import Batching, settle

Step = tuple[str, int]
steps = st.one_of(
    st.tuples(st.just("come"), st.integers(1, 5)),  # a caller with so many images
    st.tuples(st.just("leave"), st.integers(0, 30)),  # the caller of this number, if there is one
    st.tuples(st.just("size"), st.integers(1, 6)),
    st.tuples(st.just("close"), st.integers(1, 6)),  # Serve closes a batch with at most so many images
    st.tuples(st.just("end"), st.just(0)),  # a batch has run
)


class Run:
    """A sequence in which a caller is a letter, and its images are numbered."""

    def __init__(self, lanes: int) -> None:
        self.batching = Batching(BatchAdmission(lanes, size=2))
        self.callers: list[list[asyncio.Task[None]]] = []
        self.running, self.lanes, self.largest = 0, lanes, 2

    async def take(self, step: Step) -> None:
        what, value = step
        admission = self.batching.admission
        if what == "come":
            name = chr(ord("A") + len(self.callers))
            self.callers.append(self.batching.come(*(f"{name}{n}" for n in range(value))))
        elif what == "leave" and value < len(self.callers):
            for task in self.callers[value]:
                task.cancel()
        elif what == "size":
            admission.size = value
            self.largest = max(self.largest, value)
        elif what == "close" and admission._running < self.lanes:  # Serve starts no more batches than that
            await self.batching.look(most=value)
        elif what == "end" and self.batching.engine.locked() and admission._running:
            self.batching.engine.release()
        await settle()
        assert admission._running <= self.lanes
        assert len(admission._forming) <= self.largest
        gone = {
            f"{chr(ord('A') + i)}{n}" for i, tasks in enumerate(self.callers) for n, t in enumerate(tasks) if t.done()
        }
        gone |= {name for batch in self.batching.batches for name in batch}
        assert not gone & (admission._forming | admission._late), "who has left, or runs, keeps no place"

    async def finish(self) -> None:
        """Closes and ends batches until nothing is left to do."""
        for _ in range(300):
            left = [task for caller in self.callers for task in caller if not task.done()]
            if not left and not self.batching.admission._running:  # a batch runs on when its callers have left
                return
            if self.batching.admission._running < self.lanes:
                await self.batching.look()
            self.batching.engine.release()
            await settle()


def in_order(names: Sequence[str]) -> bool:
    """Whether the images of each caller ran in the order in which they came."""
    return all(
        [n for n in names if n[0] == caller] == sorted(n for n in names if n[0] == caller)
        for caller in {n[0] for n in names}
    )


@given(st.lists(steps, max_size=40), st.integers(1, 3))
@settings(max_examples=1000, deadline=None)
@example([("come", 2), ("close", 1), ("come", 1), ("leave", 0)], 1)
@example([("come", 1), ("close", 1), ("leave", 0)], 1)
def test_any_sequence_ends_with_all_images_run_or_gone(sequence: list[Step], lanes: int) -> None:
    async def main() -> None:
        run = Run(lanes)
        for step in sequence:
            await run.take(step)
        await run.finish()
        for number, caller in enumerate(run.callers):
            gone = ("leave", number) in sequence
            assert all(task.done() and (gone or not task.cancelled()) for task in caller), "somebody waits for ever"
        admission = run.batching.admission
        assert (admission._running, admission._forming, admission._late, admission._waiting) == (0, set(), set(), {})
        ran = [name for batch in run.batching.batches for name in batch]
        assert len(ran) == len(set(ran))
        assert in_order(ran)
        assert max(map(len, run.batching.batches), default=0) <= run.largest + run.lanes * run.largest

    asyncio.run(main())


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_a_caller_waits_for_one_image_of_each_other(counts: list[int]) -> None:
    """All come while the engine is busy. In each round every caller that has images left runs one."""

    async def main() -> list[list[str]]:
        batching = Batching(BatchAdmission(1, 1))
        batching.come("Z0")
        await batching.look()
        for number, count in enumerate(counts):
            batching.come(*(f"{chr(ord('A') + number)}{n}" for n in range(count)))
            await settle()
        for _ in range(sum(counts) + 1):
            await batching.release()
        return batching.batches

    ran = [batch[0] for batch in asyncio.run(main())][1:]
    assert len(ran) == sum(counts)
    rounds = sorted(ran, key=lambda name: (int(name[1:]), name[0]))
    assert ran == rounds
