"""Whether weights run in int8: made once, kept, and refused with its reason."""

from __future__ import annotations

import json
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from serve_app.errors import DamagedWeights, GoldenFailed, NotFinite
from serve_app.graph.live_weights import LiveWeights
from serve_app.http.schemas import ServedModel
from serve_app.settings import AppSettings
from serve_app.vision import sample_photos
from serve_app.vision.engines import openvino
from serve_app.vision.engines.checkpoint import read_checkpoint
from serve_app.weights import golden_set, loader, quantisation
from serve_app.weights.identity import BUNDLED, pin_file
from serve_app.weights.quantisation import ENOUGH, OBJECTS, Quantisation

GOOD: dict[str, Any] = {"versions": "", "ranges": {}, "objects": 200, "missed": 0.0, "score": 0.02, "overlap": 0.98}
vnni = pytest.mark.skipif(not openvino.has_vnni(), reason="int8 overflows on CPUs without VNNI")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({}, None, id="good"),
        pytest.param({"objects": OBJECTS - 1}, "objects", id="too few to say"),
        pytest.param({"objects": 0, "score": 0.0, "overlap": 0.0}, "objects", id="none"),
        pytest.param({"missed": 0.021}, "missed", id="missed"),
        pytest.param({"score": 0.031}, "score", id="other scores"),
        pytest.param({"overlap": 0.95}, "overlap", id="other boxes"),
        pytest.param({"missed": 1.0, "score": 0.0, "overlap": 0.0}, "missed", id="all missed"),
    ],
)
def test_what_is_refused_and_why(change: dict[str, Any], reason: str | None) -> None:
    refused = Quantisation(**GOOD | change).refused
    assert (refused.reason if refused else None) == reason


def test_the_bundled_model_comes_with_its_quantisation() -> None:
    """Else each fresh installation would calibrate: after an update, run `python -m models.quantise`."""
    manifest = pin_file(str(BUNDLED)).manifest
    assert manifest
    assert manifest.int8
    assert manifest.int8.versions == quantisation.current()
    assert manifest.int8.refused is None


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The bundled model as weights without a manifest."""
    return Path(shutil.copy(BUNDLED, tmp_path / "own.pt"))


@pytest.fixture
def settings(tmp_path: Path) -> AppSettings:
    return AppSettings(precision="int8", weights_cache=str(tmp_path / "cache"))


def loaded(path: Path, settings: AppSettings) -> loader.Loaded:
    get = partial(loader.fetch, settings=settings)
    return loader.load(str(path), get, settings=settings, size=416, task="detect", device="cpu", batch_sizes={1})


@vnni
def test_it_is_made_once_and_kept(
    own: Path, settings: AppSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loaded(own, settings)
    assert (first.engine.precision, first.weights.precision, first.int8_refused) == ("int8", "int8", None)
    (kept,) = (tmp_path / "cache").iterdir()
    made = Quantisation.model_validate_json(kept.read_bytes())
    assert OBJECTS <= made.objects <= ENOUGH + 300
    monkeypatch.setattr(quantisation, "make", None)
    assert loaded(own, settings).engine.precision == "int8"
    kept.write_text(made.model_copy(update={"versions": "openvino 1"}).model_dump_json())
    with pytest.raises(TypeError):
        loaded(own, settings)
    kept.write_text("{")
    with pytest.raises(TypeError):
        loaded(own, settings)


@vnni
def test_what_cannot_be_kept_is_made_and_said(
    own: Path, settings: AppSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    made = Quantisation(**GOOD | {"versions": quantisation.current()})
    monkeypatch.setattr(quantisation, "make", lambda *_: made)
    network = read_checkpoint(own)
    with caplog.at_level(logging.WARNING, "ray.serve"):
        assert quantisation.of(network, pin_file(str(own)), 416, settings) == made
    assert "cannot be kept" in caplog.text


@vnni
def test_the_manifests_own_is_used(own: Path, settings: AppSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(BUNDLED.with_suffix(".json"), own.with_suffix(".json"))
    monkeypatch.setattr(quantisation, "make", None)
    assert loaded(own, settings).engine.precision == "int8"


@vnni
def test_weights_that_int8_would_harm_run_in_float32_and_say_so(
    own: Path, settings: AppSettings, caplog: pytest.LogCaptureFixture
) -> None:
    facts = json.loads(BUNDLED.with_suffix(".json").read_bytes())
    facts["int8"]["score"] = 0.2
    own.with_suffix(".json").write_text(json.dumps(facts))
    live = LiveWeights(settings, str(own), 416, "detect", "cpu")
    with caplog.at_level(logging.WARNING, "ray.serve"):
        live.switch_to(None, {1})
    shown = ServedModel.at(live.report())
    assert shown.precision == "float32"
    assert shown.int8_refused == "0.200 is the mean difference of confidence, at most 0.03 may be"
    assert shown.int8_refused in caplog.text


@vnni
def test_a_network_that_is_not_finite_is_refused_as_ever(tmp_path: Path, settings: AppSettings) -> None:
    content = torch.load(BUNDLED, weights_only=False)
    content["model"].model[3].conv.weight.data.fill_(float("inf"))
    torch.save(content, tmp_path / "inf.pt")
    with pytest.raises(NotFinite):
        loaded(tmp_path / "inf.pt", settings)


@vnni
@pytest.mark.parametrize(("key", "value"), [("ranges", {}), ("ranges", {"network.model.3.conv": [0, 1]})])
def test_a_manifest_with_ranges_of_another_network_is_refused(
    own: Path, settings: AppSettings, key: str, value: object
) -> None:
    facts = json.loads(BUNDLED.with_suffix(".json").read_bytes())
    facts["int8"][key] = value
    own.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(DamagedWeights):
        loaded(own, settings)


@pytest.mark.parametrize(
    "change", [{"ranges": {"a": [0, float("inf")]}}, {"score": float("nan")}, {"missed": -1}, {"objects": -1}]
)
def test_numbers_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Quantisation(**GOOD | change)


@vnni
def test_weights_that_fail_their_golden_set_only_in_int8_run_in_float32(own: Path, settings: AppSettings) -> None:
    exact = loaded(own, settings.model_copy(update={"precision": "float32"}))
    golden = golden_set.make(exact.engine, sample_photos.files(), 416)
    facts = json.loads(BUNDLED.with_suffix(".json").read_bytes())
    facts["golden"] = json.loads(golden.model_dump_json())
    facts["golden"]["limits"] = {"iou": 0.9999, "missed": 0.0}
    own.with_suffix(".json").write_text(json.dumps(facts))
    made = loaded(own, settings)
    assert made.engine.precision == "float32"
    assert made.int8_refused
    assert made.int8_refused.reason == "golden"
    assert "missed objects" in made.int8_refused.detail
    facts["golden"]["photos"][0]["objects"][0]["name"] = "truck"
    own.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(GoldenFailed):
        loaded(own, settings)


def test_int8_is_only_for_the_cpu_and_its_own_engine() -> None:
    from serve_app.vision.engines.engine import wants_int8

    assert not wants_int8(AppSettings(precision="int8"), "cuda")
    assert not wants_int8(AppSettings(precision="int8", engine="torch"), "cpu")
    assert not wants_int8(AppSettings(precision="float32"), "cpu")


def test_the_order_of_the_limits_is_that_of_the_numbers() -> None:
    worst = Quantisation(**GOOD | {"missed": 0.5, "score": 0.5, "overlap": 0.1}).refused
    assert worst
    assert worst.reason == "missed"
    assert "0.500" in worst.detail
