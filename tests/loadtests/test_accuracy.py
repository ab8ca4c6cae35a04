"""The accuracy of each task: right answers have 1, and what is shifted or of another class has less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from loadtests.benchmarks import accuracy, shapes
from loadtests.benchmarks.shapes import NAMES, PICTURES, Shape
from serve_app.vision.engines.checkpoint import names_of, read_checkpoint, task_of


def answer(task: str, shape: Shape, pixels: float) -> dict[str, Any]:
    """A shape as the service would answer it, so many pixels to the right."""
    shift = np.array((pixels, 0), np.float32)
    box = (shape.xywh.reshape(2, 2) * ((1, 1), (0.5, 0.5))).astype(float)
    corners = np.concatenate([box[0] - box[1] + shift, box[0] + box[1] + shift])
    found: dict[str, Any] = {"class": shape.class_id, "name": NAMES[shape.class_id], "confidence": 0.9}
    found["box"] = dict(zip(("x1", "y1", "x2", "y2"), corners.tolist(), strict=True))
    if task == "obb":
        turned = (shape.corners + shift).ravel().tolist()
        found["box"] = dict(zip(("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4"), turned, strict=True))
    for key, points in (("segments", shape.outline), ("keypoints", shape.points)):
        x, y = (points + shift).T.tolist()
        found[key] = {"x": x, "y": y}
    found["keypoints"]["visible"] = [1.0] * len(shape.points)
    return found


@pytest.mark.parametrize(("task", "kind"), [(task, kind) for task, kinds in accuracy.KINDS.items() for kind in kinds])
def test_right_answers_have_one_and_shifted_ones_less(task: str, kind: str, tmp_path: Path) -> None:
    shapes.write_pictures(tmp_path, task, 8)
    rng = np.random.default_rng(1)
    every = [shapes.drawn(rng, 256 - 64 * (n % 2), 320, 4)[1] for n in range(8)]  # as `write_pictures` draws them
    photos = sorted((tmp_path / "images").glob("*.jpg"))
    scores = []
    for shift in (0, 20, 300):
        answers = [
            {"shape": cv2.imread(str(photo)).shape[:2], "results": [answer(task, shape, shift) for shape in drawn]}
            for photo, drawn in zip(photos, every, strict=True)
        ]
        scores.append(accuracy.score(photos, tmp_path / "labels", answers, task, kind)[0])
    assert scores[0] == pytest.approx(1, abs=0.01)
    assert scores[0] > scores[1] > scores[2] == 0


def test_the_best_class_and_the_best_five(tmp_path: Path) -> None:
    shapes.write_pictures(tmp_path, "classify", 6)
    photos = sorted((tmp_path / "images").rglob("*.jpg"))
    assert len(photos) == 6
    orders = [[p.parent.name, "a"] for p in photos[:3]] + [["a", p.parent.name] for p in photos[3:5]] + [["a", "b"]]
    assert accuracy.best(photos, [{"results": [{"name": name} for name in order]} for order in orders]) == (
        3 / 6,
        5 / 6,
    )


@pytest.mark.parametrize(
    "name", ["yolov8n", "yolo11n-seg", "yolo26n-seg", "yolo26n-pose", "yolov8n-obb", "yolov8n-cls"]
)
def test_a_training_leaves_a_checkpoint_of_its_task(name: str, tmp_path: Path) -> None:
    shapes.main(name, tmp_path, 4)
    made = read_checkpoint(tmp_path / f"{name}.pt")
    assert task_of(made).name == shapes.task_of(name)
    assert names_of(made) == tuple(NAMES.values())
    assert len(list((tmp_path / "images").rglob("*.jpg"))) == PICTURES
    assert all(bool(torch.isfinite(weights).all()) for weights in made.parameters())
