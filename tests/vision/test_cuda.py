"""The CUDA engine on the CPU: all of it but CUDA itself, whose place `CpuStream` takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from loadtests.gpu.cpu_stream import CpuStream
from serve_app.errors import OutOfMemory, WeightsError
from serve_app.vision.engines.checkpoint import read_checkpoint
from serve_app.vision.engines.cuda import LANES, CudaEngine, batch_sizes
from serve_app.vision.engines.engine import OnSquares
from serve_app.vision.engines.pytorch import TorchEngine
from serve_app.vision.tasks.task import Output
from serve_app.weights.identity import BUNDLED

SIZE = 96
WAIT_S = 60


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def wanted(images: np.ndarray) -> np.ndarray:
    return np.array([head for (head,) in TorchEngine(read_checkpoint(BUNDLED))(images)])


def made(stream: type[CpuStream] = CpuStream) -> CudaEngine:
    return CudaEngine(read_checkpoint(BUNDLED), SIZE, "float32", stream)


def same(outputs: Sequence[Output], wanted: np.ndarray) -> None:
    """Boxes, scores, and the class of each anchor where two classes are not as good as equal."""
    got = np.array([head for (head,) in outputs])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[:, :4], wanted[:, :4], atol=0.01)
    np.testing.assert_allclose(got[:, 4], wanted[:, 4], atol=1e-4)
    assert (got[:, 5] == wanted[:, 5])[wanted[:, 4] > 0.01].all()


@pytest.mark.parametrize("most", [1, 2, 3, 5, 8, 12, 17, 64, 200])
def test_the_captured_sizes_end_with_the_largest_and_waste_a_third_at_most(most: int) -> None:
    sizes = batch_sizes(most)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == most
    assert sizes[-1] == 1
    for n in range(1, most + 1):
        padded = min(size for size in sizes if size >= n)
        assert padded - n <= padded / 3


@pytest.mark.parametrize("order", [(12, *range(1, 12)), tuple(range(1, 13)), (3, 1, 7, 2, 12, 5)])
def test_every_batch_has_its_own_answers(order: tuple[int, ...], images: np.ndarray, wanted: np.ndarray) -> None:
    """Padded batches too, whose last places hold images of an earlier batch; and arrays as well as lists of images."""
    engine = made()
    for n in order:
        same(engine(images[-n:]), wanted[-n:])
        same(engine(list(images[:n])), wanted[:n])


def test_images_of_other_shapes_lie_in_the_middle_of_squares(images: np.ndarray) -> None:
    parts = [images[0, :64], images[1], images[2, :, :32], images[3, :32]]
    exact = np.array([head for (head,) in OnSquares(TorchEngine(read_checkpoint(BUNDLED)), SIZE)(parts)])
    engine = made()
    for n in (4, 2, 4):  # what lay in a place before must not shine through
        same(engine(parts[-n:]), exact[-n:])
        same(engine(parts[:n]), exact[:n])


def test_answers_do_not_change_with_the_next_batch(images: np.ndarray, wanted: np.ndarray) -> None:
    engine = made()
    first = [engine(images[:2]) for _ in range(LANES)]
    for _ in range(LANES):
        engine(images[2:4])
    for heads in first:
        same(heads, wanted[:2])


def test_a_batch_replays_the_smallest_graph_that_holds_it(images: np.ndarray) -> None:
    captured: list[Callable[[], None]] = []
    replayed: list[int] = []

    class Recorded(CpuStream):
        def capture(self, run: Callable[[], None]) -> Callable[[], None]:
            captured.append(run)
            super().capture(run)
            return lambda: replayed.append(run.args[0])  # type: ignore[attr-defined]

    engine = made(Recorded)
    for n in (6, 1, 4, 5):
        engine(images[:n])
    assert [run.args[0] for run in captured] == LANES * [6, 4, 3, 2, 1]  # type: ignore[attr-defined]
    assert replayed == [6, 1, 4, 6]
    engine(images[:8])
    assert [run.args[0] for run in captured[LANES * 5 :]] == LANES * [8, 6, 4, 3, 2, 1]  # type: ignore[attr-defined]


class Gated(CpuStream):
    """A stream whose work ends when the test lets it."""

    running = threading.Semaphore(0)
    gate = threading.Event()

    @contextmanager
    def work(self) -> Iterator[None]:
        yield
        Gated.running.release()
        assert Gated.gate.wait(WAIT_S)


@pytest.fixture
def gated() -> Iterator[type[Gated]]:
    Gated.running, Gated.gate = threading.Semaphore(0), threading.Event()
    yield Gated
    Gated.gate.set()


def test_as_many_batches_as_lanes_run_at_a_time(images: np.ndarray, wanted: np.ndarray, gated: type[Gated]) -> None:
    engine = made(gated)
    with ThreadPoolExecutor(LANES + 2) as pool:
        batches = [slice(i, i + 2) for i in range(LANES + 2)]
        answers = [pool.submit(engine, images[batch]) for batch in batches]
        for _ in range(LANES):
            assert gated.running.acquire(timeout=WAIT_S)
        assert not gated.running.acquire(timeout=0.2)
        gated.gate.set()
        for answer, batch in zip(answers, batches, strict=True):
            same(answer.result(WAIT_S), wanted[batch])


def test_lanes_grow_while_a_batch_runs(images: np.ndarray, wanted: np.ndarray, gated: type[Gated]) -> None:
    engine = made(gated)
    with ThreadPoolExecutor(2) as pool:
        small = pool.submit(engine, images[:2])
        assert gated.running.acquire(timeout=WAIT_S)
        large = pool.submit(engine, images)
        assert gated.running.acquire(timeout=WAIT_S), "it need not wait for the small one's lane"
        gated.gate.set()
        same(small.result(WAIT_S), wanted[:2])
        same(large.result(WAIT_S), wanted)


class Small(CpuStream):
    """A GPU without room for the second lane of a batch of more than four."""

    lanes = 0

    def __init__(self) -> None:
        Small.lanes += 1

    def buffers(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        if shape[0] > 4 and Small.lanes % LANES == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().buffers(shape, dtype)


def test_what_does_not_fit_is_refused_and_the_rest_goes_on(images: np.ndarray, wanted: np.ndarray) -> None:
    engine = made(Small)
    same(engine(images[:4]), wanted[:4])
    for _ in range(2):
        with pytest.raises(OutOfMemory, match="lower max_batch_size") as refused:
            engine(images[:5])
        assert refused.value.__context__ is None, "the failed attempt's traceback would keep its memory"
    assert issubclass(OutOfMemory, WeightsError), "a swap reports it"
    assert issubclass(OutOfMemory, RuntimeError), "a larger max_batch_size is refused, and the replica lives"
    same(engine(images[:3]), wanted[:3])


def test_a_failed_batch_takes_no_lane_with_it(images: np.ndarray, wanted: np.ndarray) -> None:
    class Failing(CpuStream):
        failures = LANES

        @contextmanager
        def work(self) -> Iterator[None]:
            yield
            if Failing.failures:
                Failing.failures -= 1
                raise RuntimeError("an illegal memory access")

    engine = made(Failing)
    for _ in range(LANES):
        with pytest.raises(RuntimeError, match="illegal"):
            engine(images[:2])
    for _ in range(LANES + 1):
        same(engine(images[:2]), wanted[:2])


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_precisions_of_cpus_are_refused(precision: str) -> None:
    with pytest.raises(RuntimeError, match="is for CPUs"):
        CudaEngine(read_checkpoint(BUNDLED), SIZE, precision, CpuStream)  # type: ignore[arg-type]
