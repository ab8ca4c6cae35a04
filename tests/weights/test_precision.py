from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from loadtests.gpu.cpu_stream import CpuStream
from serve_app.errors import Imprecise, NotFinite
from serve_app.settings import AppSettings
from serve_app.vision.engines import cuda
from serve_app.vision.engines.checkpoint import read_checkpoint
from serve_app.vision.engines.cuda import CudaEngine
from serve_app.vision.engines.engine import Engine, Images
from serve_app.vision.tasks.by_name import TASKS
from serve_app.vision.tasks.task import Output
from serve_app.weights import loader, precision
from serve_app.weights.identity import BUNDLED

NAMES, SIZE = ("person", "bus"), 640
Row = tuple[float, float, float, float, float, float]  # centre x, y, width, height in the network input, score, class
PERSON: Row = (200, 300, 100, 200, 0.9, 0)
BUS: Row = (450, 300, 150, 100, 0.7, 1)


class Finds:
    """A network that finds these objects in every photo."""

    class_names, task, device, precision = NAMES, TASKS["detect"], "cpu", "float32"

    def __init__(self, *rows: Row) -> None:
        self.head = np.array(rows or [[0] * 6], np.float32).T

    def __call__(self, _: Images) -> list[Output]:
        return [(self.head,)]


def finds(*rows: Row) -> Engine:
    return Finds(*rows)


def changed(row: Row, **by: float) -> Row:
    fields = dict(zip(("x", "y", "width", "height", "score", "class_id"), row, strict=True))
    x, y, width, height, score, class_id = (value + by.get(name, 0) for name, value in fields.items())
    return x, y, width, height, score, class_id


@pytest.mark.parametrize(
    "got",
    [
        pytest.param([PERSON, BUS], id="the same"),
        pytest.param([BUS, PERSON], id="in another order"),
        pytest.param([changed(PERSON, score=-0.04), changed(BUS, score=0.04)], id="slightly other scores"),
        pytest.param([changed(PERSON, x=4), changed(BUS, width=8)], id="slightly other boxes"),
        pytest.param([PERSON, BUS, (50, 50, 20, 20, 0.49, 0)], id="one more, not sure"),
    ],
)
def test_small_differences_pass(got: Sequence[Row], bus: bytes) -> None:
    precision.check([bus], finds(*got), finds(PERSON, BUS), SIZE)


@pytest.mark.parametrize(
    "got",
    [
        pytest.param([], id="nothing"),
        pytest.param([PERSON], id="one missed"),
        pytest.param([PERSON, BUS, (50, 50, 20, 20, 0.6, 0)], id="one more"),
        pytest.param([PERSON, changed(BUS, score=-0.06)], id="less sure"),
        pytest.param([changed(PERSON, score=0.06), BUS], id="more sure"),
        pytest.param([PERSON, changed(BUS, x=12)], id="moved"),
        pytest.param([changed(PERSON, height=-30), BUS], id="smaller"),
        pytest.param([PERSON, changed(BUS, class_id=-1)], id="another class"),
        pytest.param([changed(PERSON, score=np.nan), BUS], id="not a number"),
    ],
)
def test_large_differences_are_refused(got: Sequence[Row], bus: bytes) -> None:
    with pytest.raises(Imprecise, match="set `precision: float32`"):
        precision.check([bus], finds(*got), finds(PERSON, BUS), SIZE)


def test_one_stray_object_in_ten_is_a_close_case(bus: bytes) -> None:
    close: Row = (50, 50, 20, 20, 0.6, 0)
    with pytest.raises(Imprecise, match="1 of 9 objects"):
        precision.check([bus] * 2, finds(PERSON, BUS), Turns(finds(PERSON, BUS), finds(PERSON, BUS, close)), SIZE)
    precision.check([bus] * 3, finds(PERSON, BUS), Turns(*[finds(PERSON, BUS)] * 2, finds(PERSON, BUS, close)), SIZE)


class Turns(Finds):
    """A network that finds other objects in each photo."""

    def __init__(self, *turns: Engine) -> None:
        self._turns = iter(turns)

    def __call__(self, images: Images) -> list[Output]:
        return list(next(self._turns)(images))


def test_without_objects_it_says_that_it_checked_nothing(bus: bytes, caplog: pytest.LogCaptureFixture) -> None:
    precision.check([bus], finds(), finds(), SIZE)
    assert "no objects to compare" in caplog.text


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "CudaEngine", partial(CudaEngine, stream=CpuStream))


def load(path: Path, **settings: str) -> loader.Loaded:
    known = AppSettings.model_validate(settings)
    get = partial(loader.fetch, settings=known)
    return loader.load(str(path), get, settings=known, size=416, task="detect", device="cuda", batch_sizes={1, 2})


@pytest.mark.usefixtures("gpu")
def test_weights_pass_all_checks_in_float16() -> None:
    assert load(BUNDLED).engine.device == "cuda"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_weights_that_overflow_float16_are_refused(layer: int, tmp_path: Path) -> None:
    """One layer scaled up and the next one down: in float32 the network finds what it found, within 0.2."""
    network, factor = read_checkpoint(BUNDLED), 1e4
    scaled, after = network.model[layer], network.model[layer + 1]
    with torch.no_grad():
        scaled.bn.weight *= factor
        scaled.bn.bias *= factor
        (after.conv if layer == 0 else after.cv1.conv).weight /= factor
    broken = tmp_path / "broken.pt"
    torch.save({"model": network}, broken)
    with pytest.raises((Imprecise, NotFinite)):
        load(broken)
    assert load(broken, precision="float32")
