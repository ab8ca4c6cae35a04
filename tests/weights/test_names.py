"""Names that users choose, of classes, files and S3 keys, break nothing, or their weights are refused before they are live."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.responses import Response

from serve_app import metrics
from serve_app.errors import MissingWeights, WrongWeights
from serve_app.graph import class_thresholds
from serve_app.graph.live_weights import LiveWeights
from serve_app.http.predict import model_header
from serve_app.http.schemas import ServedModel
from serve_app.settings import AppSettings, PredictOptions
from serve_app.vision import drawing
from serve_app.vision.boxes import candidates
from serve_app.vision.engines.checkpoint import LONGEST_NAME, names_of
from serve_app.vision.engines.layers import DetectionModel
from serve_app.weights.address import Address
from serve_app.weights.identity import pin_file

SIZE = 32
ODD = ["Fußgänger", "人", "🚲", "", " ", "a\nb", '"}\\', "%41", "\x00", "\x1b[31m", "\u202eelbib", "x" * LONGEST_NAME]
ANY_FILE_NAME = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=50)


@pytest.fixture(scope="module")
def network() -> DetectionModel:
    return DetectionModel("yolo26n.yaml", nc=3, verbose=False)


def save(network: DetectionModel, names: object, path: Path) -> None:
    network.names = names
    torch.save({"model": network}, path)


def labelled(x1: float, y1: float, x2: float, y2: float, name: str) -> dict[str, Any]:
    return {"class": 0, "name": name, "confidence": 0.5, "box": {"x1": x1, "y1": y1, "x2": x2, "y2": y2}}


def lived(uri: Path) -> LiveWeights:
    live = LiveWeights(AppSettings(engine="torch"), str(uri), SIZE, "detect", "cpu")
    live.switch_to(None, {1})
    return live


@pytest.mark.parametrize("name", ODD)
def test_a_class_of_any_name_is_loaded_drawn_and_counted(
    network: DetectionModel, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(network, {0: name, 1: "b", 2: "c"}, tmp_path / "w.pt")
    live = lived(tmp_path / "w.pt")
    assert live.current.weights.class_names[0] == name
    shown = json.loads(ServedModel.at(live.report()).model_dump_json())
    assert shown["classes"]["0"] == name
    metrics.detections_total().inc(1, {"class_name": name})
    drawing.to_jpeg(drawing.draw(Image.new("RGB", (64, 64)), [labelled(1, 1, 40, 40, name)]))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text(max_size=LONGEST_NAME), min_size=3, max_size=3), file=ANY_FILE_NAME)
def test_any_names_go_from_the_file_to_the_answer_and_through_a_swap(
    network: DetectionModel, tmp_path: Path, caplog: pytest.LogCaptureFixture, names: list[str], file: str
) -> None:
    path = tmp_path / f"{file.encode()[:200].decode(errors='ignore')}.pt"
    save(network, dict(enumerate(names)), path)
    other = tmp_path / "other.pt"
    save(network, {0: "a", 1: "b", 2: "c"}, other)
    live = lived(other)
    live.switch_to(str(path), {1})
    live.set_gauge()
    shown = json.loads(ServedModel.at(live.report()).model_dump_json())
    assert (shown["name"], list(shown["classes"].values())) == (path.stem, names)
    ((head,),) = live.current.engine([np.zeros((SIZE, SIZE, 3), np.uint8)])
    wanted = [name for name in names if not name.isdigit()] or None  # digits are an id
    everything, found = (
        candidates(head, class_thresholds.of(PredictOptions(conf=0, classes=classes), tuple(names), 0.25))
        for classes in (None, wanted)
    )
    assert len(everything), "what a network finds in black, with any confidence"
    assert set(found.class_id) == {k for k in set(everything.class_id) if wanted is None or names[k] in wanted}
    for class_id in set(found.class_id.tolist()):
        metrics.detections_total().inc(1, {"class_name": live.current.weights.class_names[class_id]})
    live.switch_to(str(other), {1})
    assert live.report().weights.name == "other"
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    response = Response(headers={"X-Model-Name": model_header(path.stem)})
    ((_, header),) = [h for h in response.raw_headers if h[0] == b"x-model-name"]
    assert header.isascii()
    assert header.decode().isprintable()
    assert unquote(header.decode()) == path.stem
    path.unlink()


@given(text=st.text())
def test_a_label_is_printable_ascii_and_means_one_name(text: str) -> None:
    label = metrics.escaped({"name": text})["name"]
    assert label.isascii()
    assert label.isprintable()
    assert label.encode().decode("unicode_escape") == text


@given(text=st.text(max_size=40))
def test_any_text_can_be_drawn(text: str) -> None:
    drawn = drawing.draw(Image.new("RGB", (64, 64)), [labelled(1, 20, 40, 40, text)])
    assert np.asarray(drawn).any()


def test_what_the_font_has_not_is_drawn_as_its_escape() -> None:
    one, other = (
        drawing.draw(Image.new("RGB", (200, 64)), [labelled(1, 30, 90, 60, text)]) for text in ("人", r"\u4eba")
    )
    assert np.array_equal(np.asarray(one), np.asarray(other))
    umlaut = drawing.draw(Image.new("RGB", (200, 64)), [labelled(1, 30, 90, 60, "ß")])
    escaped = drawing.draw(Image.new("RGB", (200, 64)), [labelled(1, 30, 90, 60, r"\xdf")])
    assert not np.array_equal(np.asarray(umlaut), np.asarray(escaped))


@given(key=st.text(min_size=1, max_size=60), pinned=st.booleans())
def test_any_key_is_in_an_address_as_it_is(key: str, pinned: bool) -> None:
    query = "?versionId=v1&sha256=ab" if pinned else ""
    at = Address.parse(f"s3://bucket/{key}.pt{query}")
    assert (at.bucket, at.key, at.version, at.sha256) == (
        "bucket",
        f"{key}.pt",
        *(("v1", "ab") if pinned else (None, None)),
    )
    assert Address.parse(at.pinned("v1", "ab")).key == at.key


def test_a_file_name_that_is_not_utf8_is_refused(network: DetectionModel, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.pt")
    save(network, {0: "a", 1: "b", 2: "c"}, path)
    with pytest.raises(MissingWeights, match="is not UTF-8: rename it"):
        pin_file(str(path))


@pytest.mark.parametrize(
    "names",
    [
        pytest.param({0: "a", 1: "b"}, id="fewer than classes"),
        pytest.param({0: "a", 1: "b", 2: "c", 3: "d"}, id="more than classes"),
        pytest.param({1: "a", 2: "b", 3: "c"}, id="from 1 on"),
        pytest.param({"0": "a", "1": "b", "2": "c"}, id="ids are text"),
        pytest.param(["a", "b"], id="a short list"),
        pytest.param(None, id="none"),
        pytest.param("abc", id="a text"),
        pytest.param({0: "a", 1: "b", 2: "\ud800"}, id="a surrogate"),
        pytest.param({0: "a", 1: "b", 2: "x" * (LONGEST_NAME + 1)}, id="too long"),
    ],
)
def test_names_that_are_not_those_of_the_classes_are_refused(network: DetectionModel, names: object) -> None:
    network.names = names
    with pytest.raises(WrongWeights, match=r"3 classes|the name of class 2"):
        names_of(network)


@pytest.mark.parametrize("names", [["a", "b", "c"], ("a", "b", "c"), {2: "c", 0: "a", 1: "b"}])
def test_names_may_be_a_list_or_in_any_order(network: DetectionModel, names: object) -> None:
    network.names = names
    assert names_of(network) == ("a", "b", "c")
