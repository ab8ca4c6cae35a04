"""Training, run as SageMaker runs it: `python -m serve_app train` with a folder that stands for /opt/ml."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import yaml

from loadtests.benchmarks import accuracy
from loadtests.service import config, free_port, running
from models.accuracy import mean_ap
from serve_app.__main__ import main
from serve_app.vision import sample_photos
from serve_app.vision.boxes import Detections
from serve_app.weights import cli, golden_set, identity
from tests.conftest import ROOT

# One thread, because two on busy cores wait for each other.
TINY = {"epochs": "3", "crops": "16", "batch": "4", "size": "96", "every": "1", "lr": "1e-5", "threads": "1"}
# x1, y1, x2, y2 in pixels of the photo of the bus, which is 810 x 1080
LABELS = [(3, 23, 231, 805, 757), (0, 48, 399, 245, 903), (0, 669, 392, 810, 877), (0, 222, 406, 345, 858)]
NAMES = ["person", "car", "motorcycle", "bus", "truck"]


def mounted(folder: Path, **hyperparameters: str) -> Path:
    """What SageMaker mounts as /opt/ml: two photos, and the bundled model as teacher and as start."""
    channels, settings = folder / "input" / "data", folder / "input" / "config"
    for name in ("training/images/train", "training/labels/train", "teacher", "start"):
        (channels / name).mkdir(parents=True)
    rows = [(k, (x1 + x2) / 1620, (y1 + y2) / 2160, (x2 - x1) / 810, (y2 - y1) / 1080) for k, x1, y1, x2, y2 in LABELS]
    for name in ("hw_1", "coco_2"):
        (channels / "training" / "images" / "train" / f"{name}.jpg").write_bytes(sample_photos.bus())
        text = "".join(f"{' '.join(map(str, row))}\n" for row in rows)
        (channels / "training" / "labels" / "train" / f"{name}.txt").write_text(text)
    data = {"train": "images/train", "val": "images/train", "names": NAMES}
    (channels / "training" / "data.yaml").write_text(yaml.safe_dump(data))
    for channel in ("teacher", "start"):
        (channels / channel / "model.pt").symlink_to(identity.BUNDLED)
    settings.mkdir()
    (settings / "hyperparameters.json").write_text(json.dumps(TINY | hyperparameters))
    (settings / "resourceconfig.json").write_text(json.dumps({"current_host": "algo-1", "hosts": ["algo-1"]}))
    return folder


def job(ml: Path) -> subprocess.Popen[str]:
    """The process that SageMaker would start."""
    env = os.environ | {"SAGEMAKER_BASE_DIR": str(ml)}
    typed = [sys.executable, "-m", "serve_app", "train"]
    return subprocess.Popen(typed, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def completed(ml: Path) -> str:
    """What a job says that ends with 0."""
    process = job(ml)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert not (ml / "output" / "failure").exists()
    return said


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/opt/ml after a job."""
    ml = mounted(tmp_path_factory.mktemp("trained"))
    assert "epoch 2:" in completed(ml)
    return ml


def test_a_job_leaves_the_model_and_how_it_was_made(trained: Path) -> None:
    assert {p.name for p in (trained / "model").iterdir()} == {"best.pt", "best.json", "curve.csv", "facts.json"}


def test_the_model_verifies_and_passes_the_golden_set(
    trained: Path, bus: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, photo = trained / "model" / "best.pt", tmp_path / "bus.jpg"
    assert main(["weights", "verify", str(best)]) == 0
    assert "5 classes, 416 px" in capsys.readouterr().out
    photo.write_bytes(bus)
    new, old = (cli.load(str(p), Namespace(endpoint_url=None))[0] for p in (best, identity.BUNDLED))
    assert new.weights.sha256 != old.weights.sha256
    golden = golden_set.make(old.engine, [photo], 416)
    golden_set.check(golden, new.engine, 416)


def test_the_model_serves(trained: Path, bus: bytes) -> None:
    best = trained / "model" / "best.pt"
    with running(config(free_port(), weights=str(best))) as service:
        headers = {"Content-Type": "image/jpeg"}
        answer = httpx.post(f"{service.url}/invocations", content=bus, headers=headers, timeout=60).json()
    assert "bus" in [r["name"] for r in answer["images"][0]["results"]]
    assert answer["metadata"]["model"]["sha256"] == identity.sha256_of(best)


def test_a_job_that_was_done_trains_no_more(trained: Path) -> None:
    assert "epoch" not in completed(trained).split("going on after step 12, in epoch 3")[1]


def test_a_checkpoint_of_another_training_is_refused(trained: Path, tmp_path: Path) -> None:
    other = mounted(tmp_path, lr="1e-4")
    shutil.copytree(trained / "checkpoints", other / "checkpoints")
    process = job(other)
    process.communicate()
    assert process.returncode == 1
    assert "last.pt is from a training with another lr" in (other / "output" / "failure").read_text()
    assert not (other / "model").exists()


def test_a_stopped_job_goes_on_and_ends_as_if_it_had_not_been_stopped(trained: Path, tmp_path: Path) -> None:
    stopped = mounted(tmp_path)
    first = job(stopped)
    assert first.stdout
    next(line for line in first.stdout if line.startswith("epoch 0:"))
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate()
    assert first.returncode == 0, said
    assert "stopped after step" in said
    assert "epoch 2:" not in said
    assert not (stopped / "output" / "failure").exists()
    assert (stopped / "model" / "best.pt").exists(), "the best model so far"

    said = completed(stopped)
    assert "going on after step" in said
    assert "epoch 0:" not in said
    assert "epoch 2:" in said
    ends = [torch.load(ml / "checkpoints" / "last.pt", weights_only=True) for ml in (stopped, trained)]
    for network in ("student", "average"):
        one, other = (end["trainer"][network] for end in ends)
        assert all(torch.equal(one[k], other[k]) for k in one)
    assert [row[:-1] for row in ends[0]["rows"]] == [row[:-1] for row in ends[1]["rows"]], "all but the minutes"


def remove(channel: str) -> Callable[[Path], None]:
    return lambda ml: next((ml / "input" / "data" / channel).glob("*.*")).unlink()


def write(name: str, content: object) -> Callable[[Path], None]:
    return lambda ml: (ml / "input" / name).write_text(json.dumps(content)) and None


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        pytest.param(remove("training"), "channel `training` needs one data.yaml", id="no data"),
        pytest.param(remove("teacher"), "channel `teacher` needs one", id="no teacher"),
        pytest.param(
            write("config/hyperparameters.json", {"epoch": "2"}), "unknown hyperparameters epoch", id="a typo"
        ),
        pytest.param(
            write("config/hyperparameters.json", {"epochs": "two"}), "invalid int value: 'two'", id="no number"
        ),
        pytest.param(write("config/hyperparameters.json", {"out": "/"}), "unknown hyperparameters out", id="a path"),
        pytest.param(write("config/resourceconfig.json", {"hosts": ["a", "b"]}), "one instance, not 2", id="two hosts"),
        pytest.param(
            write("data/training/data.yaml", {"train": "images/train", "val": "images/train", "names": ["cat"]}),
            "the teacher does not know cat",
            id="a class that the teacher does not know",
        ),
        pytest.param(
            write("data/training/data.yaml", {"train": "images/none", "val": "images/train", "names": NAMES}),
            "no photo matches",
            id="no photos",
        ),
    ],
)
def test_a_job_that_fails_says_why(
    broken: Callable[[Path], None], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ml = mounted(tmp_path)
    broken(ml)
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(ml))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["train"]) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    failure = (ml / "output" / "failure").read_text()
    assert reason in failure
    assert len(failure) <= 1024
    assert not (ml / "model").exists()


def test_mean_ap_is_that_of_pycocotools(tmp_path: Path) -> None:
    rng, found, answers, photos, labels = np.random.default_rng(0), [], [], [], []
    for i in range(20):
        n, m = rng.integers(0, 6), rng.integers(0, 9)
        corner = rng.uniform(0, 300, (n, 2))
        rows = np.hstack([rng.integers(0, 3, (n, 1)), corner, corner + rng.uniform(20, 200, (n, 2))]).astype(np.float32)
        near = rows[rng.integers(0, n, m)] if n else np.zeros((0, 5), np.float32)
        xyxy = (near[:, 1:] + rng.normal(0, 12, (len(near), 4))).astype(np.float32)
        kinds = np.where(rng.random(len(near)) < 0.8, near[:, 0], 1).astype(np.int64)
        one = Detections(xyxy, rng.random(len(near)).astype(np.float32), kinds)
        found.append(one)
        labels.append(rows)
        photos.append(tmp_path / f"{i}.jpg")
        centre, size = (rows[:, 1:3] + rows[:, 3:]) / 2 / 500, (rows[:, 3:] - rows[:, 1:3]) / 500
        np.savetxt(tmp_path / f"{i}.txt", np.hstack([rows[:, :1], centre, size]), fmt="%.9f")
        results = [
            {
                "class": int(k),
                "confidence": float(s),
                "box": dict(zip(("x1", "y1", "x2", "y2"), map(float, b), strict=True)),
            }
            for b, s, k in zip(one.xyxy, one.confidence, one.class_id, strict=True)
        ]
        answers.append({"shape": (500, 500), "results": results})
    strict, loose = accuracy.score(photos, tmp_path, answers)
    assert 0.1 < mean_ap(found, labels) < 0.9
    assert mean_ap(found, labels) == pytest.approx(loose, abs=1e-6)
    assert mean_ap(found, labels, tuple(np.arange(0.5, 1, 0.05))) == pytest.approx(strict, abs=1e-6)


def test_mean_ap_without_labels_or_boxes() -> None:
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert mean_ap([], []) == 0
    assert mean_ap([nothing], [np.zeros((0, 5), np.float32)]) == 0
    assert mean_ap([nothing], [np.ones((1, 5), np.float32)]) == 0
