"""The tiles of a photo share batches with others, and are answered together, by one network."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serve_app.errors import ImageTooComplex, Overloaded, Timeout
from serve_app.graph.detector import QueuedInput, QueuedPhoto
from serve_app.graph.payloads import Detected, Prepared
from serve_app.graph.postprocessor import Postprocessor
from serve_app.http.ingress import TILED_AT_A_TIME, Ingress, SingleProcessIngress
from serve_app.settings import PredictOptions
from serve_app.vision.boxes import Detections
from serve_app.vision.image import Letterbox
from serve_app.vision.tasks import merging
from tests.test_deadline import Network, detector  # noqa: F401 - a fixture

OPTIONS = PredictOptions(tile=32)


def photo(tiles: int, seconds: float = 60) -> Prepared:
    inputs = [np.zeros((32, 32, 3), np.uint8)] * (tiles + 1)
    boxes = [Letterbox(100, 100, 0.32, 0.32, 0, 0), *(Letterbox(32, 32, 1, 1, 0, 0, 10, 10) for _ in range(tiles))]
    return Prepared(inputs, boxes, 32, OPTIONS, None, 0.0, time.time() + seconds)


def test_tiles_of_two_photos_share_batches(detector: Any) -> None:  # noqa: F811
    async def scenario() -> list[Detected]:
        return await asyncio.gather(detector(photo(5)), detector(photo(0)), detector(photo(3)))

    first, small, last = asyncio.run(scenario())
    assert [len(one.candidates) for one in (first, small, last)] == [6, 1, 4]
    assert small.batch_size == 8, "of all three photos"
    assert detector._weights.current.engine.seen == 11
    assert first.queue_s + first.inference_s >= small.queue_s + small.inference_s


def test_a_swap_between_two_batches_does_not_change_the_weights_of_a_photo(detector: Any) -> None:  # noqa: F811
    """It has twelve network inputs, and a batch eight: the swap comes while the first batch runs."""
    old = detector._weights.current

    async def scenario() -> list[Detected]:
        tiled = asyncio.create_task(detector(photo(11)))
        await asyncio.sleep(0.04)
        weights = SimpleNamespace(class_names=("b",))
        detector._weights.current = SimpleNamespace(engine=Network(detector._admission), weights=weights)
        return await asyncio.gather(tiled, detector(photo(0)))

    tiled, small = asyncio.run(scenario())
    assert (tiled.weights.class_names, small.weights.class_names) == (("a",), ("b",))
    assert (old.engine.seen, detector._weights.current.engine.seen) == (12, 1)


def test_a_photo_whose_deadline_passes_between_two_batches_is_not_answered_in_part(detector: Any) -> None:  # noqa: F811
    detector._most_tiles = 1000
    with pytest.raises(Timeout):
        asyncio.run(detector(photo(500, seconds=0.5)))
    assert 0 < detector._weights.current.engine.seen < 501, "the rest did not run"


def test_more_tiles_than_may_wait_are_refused_and_a_small_photo_is_not(detector: Any) -> None:  # noqa: F811
    async def scenario() -> list[object]:
        tasks = [asyncio.create_task(detector(photo(n))) for n in (60, 60, 0)]
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    taken, refused, small = asyncio.run(scenario())
    assert isinstance(taken, Detected)
    assert isinstance(small, Detected)
    assert isinstance(refused, Overloaded)
    assert "60 tiles are running or waiting" in str(refused)
    assert detector._tiles == 0


def test_a_caller_that_leaves_takes_its_tiles_along(detector: Any) -> None:  # noqa: F811
    async def scenario() -> None:
        task = asyncio.create_task(detector(photo(60)))
        await asyncio.sleep(0.03)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await detector(photo(0))

    asyncio.run(scenario())
    assert detector._weights.current.engine.seen < 30
    assert (detector._tiles, detector._admission._waiting) == (0, {})


def test_batches_that_run_at_the_same_time_count_once(detector: Any) -> None:  # noqa: F811
    """Two overlap for half a second, and the photo waits before the first and the last one."""
    tiled = QueuedPhoto(photo(2), arrived=0.5, live=detector._weights.current)
    inputs = [
        QueuedInput(tiled, np.zeros((32, 32, 3), np.uint8), Detections(*[np.zeros(0)] * 3), started, ended, 1)
        for started, ended in ((4.0, 5.0), (1.0, 2.0), (1.5, 2.5))
    ]
    done = detector._detected(tiled, inputs)
    assert (done.inference_s, done.queue_s) == (2.5, 2.0)


def test_two_photos_with_tiles_at_a_time_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait before they are decoded; photos without tiles do not."""
    running: dict[bool, int] = {True: 0, False: 0}
    most = dict(running)

    async def send(_: Ingress, _image: bytes, options: PredictOptions, *_rest: object) -> None:
        tiled = options.tile is not None
        running[tiled] += 1
        most[tiled] = max(most[tiled], running[tiled])
        await asyncio.sleep(0.01)
        running[tiled] -= 1

    async def scenario() -> None:
        made = SingleProcessIngress.__new__(SingleProcessIngress)
        made._tiled = asyncio.Semaphore(TILED_AT_A_TIME)
        asked = [PredictOptions(tile=tile) for tile in (None, 32) for _ in range(6)]
        await asyncio.gather(*(made._send_through(b"", options, 1, 0.0) for options in asked))

    monkeypatch.setattr(Ingress, "_send_through", send)
    asyncio.run(scenario())
    assert most == {True: 2, False: 6}


@pytest.fixture
def postprocessor() -> Postprocessor:
    """Without Ray's metrics."""
    made = Postprocessor.__new__(Postprocessor)
    made._seconds, made._detections = SimpleNamespace(observe=lambda *_: None), SimpleNamespace(inc=lambda *_: None)
    return made


def detected(boxes: int, expires_at: float) -> Detected:
    """Three network inputs with as many boxes each."""
    x = np.arange(boxes, dtype=np.float32)
    found = Detections(
        np.stack([x, x, x + 0.5, x + 0.5], 1), np.full(boxes, 0.5, np.float32), np.zeros(boxes, np.int64)
    )
    weights: Any = SimpleNamespace(task="detect", class_names=("a",))
    boxes_of = [Letterbox(9000, 9000, 1, 1, 0, 0)] * 3
    return Detected([found] * 3, boxes_of, 32, OPTIONS, None, expires_at, weights, 0.0, 0.0, 0.0, 1, "a")


def test_boxes_of_all_tiles_are_merged_and_counted(postprocessor: Postprocessor) -> None:
    done = postprocessor.finish(detected(200, time.time() + 60))
    assert (len(done.found), done.tiles.side, done.tiles.count) == (200, 32, 2)  # type: ignore[union-attr]


def test_too_many_boxes_of_all_tiles_are_refused(postprocessor: Postprocessor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "MOST_BOXES", 599)
    with pytest.raises(ImageTooComplex, match="more than 599 boxes"):
        postprocessor.finish(detected(200, time.time() + 60))


def test_the_postprocessor_stops_at_the_deadline(postprocessor: Postprocessor) -> None:
    with pytest.raises(Timeout):
        postprocessor.finish(detected(200, time.time() - 1))
