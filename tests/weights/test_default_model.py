"""The bundled model: what is in the box, and that a service without any other weights recognises real things."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
import torch

from loadtests.benchmarks import accuracy
from loadtests.service import Service, config, free_port, running
from serve_app.vision.engines import openvino
from serve_app.vision.engines.checkpoint import read_checkpoint
from serve_app.weights import identity
from tests.conftest import shared

MANIFEST = json.loads(identity.BUNDLED.with_suffix(".json").read_text())
ROAD5 = ["person", "car", "motorcycle", "bus", "truck"]


def test_the_file_is_what_its_manifest_says() -> None:
    assert MANIFEST["sha256"] == identity.sha256_of(identity.BUNDLED)
    assert MANIFEST["bytes"] == identity.BUNDLED.stat().st_size <= 7_000_000
    assert MANIFEST["class_names"] == list(read_checkpoint(identity.BUNDLED).names.values()) == ROAD5
    stored = torch.load(identity.BUNDLED, weights_only=False)["model"]
    assert {p.dtype for p in stored.parameters()} == {torch.float16}


@pytest.fixture(scope="module")
def bundled() -> Iterator[Service]:
    """As on a machine without `models/yolov8n.pt`, where `auto` means the same file."""
    with running(config(free_port(), weights="models/default.pt")) as service:
        yield service


def test_it_finds_the_bus_and_its_people(bundled: Service, bus: bytes) -> None:
    answer = httpx.post(f"{bundled.url}/v1/predict", files={"file": bus}, timeout=60).json()
    names = [r["name"] for r in answer["images"][0]["results"]]
    assert names.count("bus") == 1
    assert names.count("person") >= 2


def test_the_service_says_that_it_is_the_bundled_one(bundled: Service) -> None:
    card = {"name": "default", "sha256": MANIFEST["sha256"], "bundled": True, "version": None}
    card |= {"precision": openvino.chosen("auto")}
    assert httpx.get(f"{bundled.url}/readyz").json()["model"] == card
    model = httpx.get(f"{bundled.url}/v1/models").json()["models"][0]
    assert model == card | {
        "classes": {str(i): n for i, n in enumerate(ROAD5)},
        "image_size": MANIFEST["image_size"],
        "trained_size": MANIFEST["image_size"],
        "device": "cpu",
        "int8_refused": None,
        "task": "detect",
        "uri": str(identity.BUNDLED),
        "previous": None,
        "loading": None,
        "refused": [],
    }
    assert any(line.startswith("Starting with the bundled model") for line in bundled.lines)


@pytest.mark.parametrize(("split", "bar"), [("val", 0.75), ("test", 0.30)])
def test_accuracy_over_http(bundled: Service, split: str, bar: float) -> None:
    photos = sorted(shared("train-road5", "images", split).glob("*.jpg"))
    labels = shared("train-road5", "labels", split)
    assert accuracy.score(photos, labels, accuracy.detect(bundled.url, photos))[1] >= bar
