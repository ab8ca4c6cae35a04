"""`python -m loadtests.benchmarks.shapes yolo11n-seg FOLDER`: a data set of drawn shapes, and a network trained on it.

Trained networks of most tasks cannot be part of this repository, and random ones find nothing that can be scored. This
trains one in minutes. It writes FOLDER/yolo11n-seg.pt and pictures that the training has not seen, with labels in
YOLO's format: FOLDER/images/ and FOLDER/labels/, or FOLDER/images/CLASS/ for classify.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from loadtests.benchmarks.random_networks import ENDINGS, MODELS
from serve_app.vision.engines.layers import DetectionModel

NAMES = {0: "ellipse", 1: "rectangle", 2: "triangle"}
SIDE, BATCH, PICTURES = 160, 16, 64
TURN = 2 * np.pi
POINTS = np.array([(0.75, 0), (0, 0), (-1, 0)])  # front, middle, back of a shape from -1 to 1
Points = NDArray[np.float32]  # (P, 2) of x, y in pixels


@dataclass(frozen=True)
class Shape:
    """A drawn shape: its outline, the corners (4, 2) of its turned box, and its key points: front, middle, back.

    A white dot marks the front.
    """

    class_id: int
    outline: Points
    corners: Points
    points: Points

    @property
    def xywh(self) -> Points:
        """Centre and size of the upright box."""
        low, high = self.outline.min(0), self.outline.max(0)
        return np.concatenate([(low + high) / 2, high - low])

    @property
    def xywhr(self) -> list[float]:
        """Centre, size and angle (radians, 0 to a quarter turn) of the turned box."""
        centre, size, degrees = cv2.minAreaRect(self.corners)
        return [*centre, *size, np.radians(degrees)]


def drawn(rng: np.random.Generator, height: int, width: int, most: int) -> tuple[NDArray[np.uint8], list[Shape]]:
    """A picture uint8 (height, width, 3) in RGB with 1 to `most` shapes that do not touch."""
    coarse = rng.integers(60, 200, (6, 8, 3)).astype(np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)
    shapes: list[Shape] = []
    places: list[tuple[Points, float]] = []
    for _ in range(int(rng.integers(1, most + 1))):
        long = float(rng.uniform(0.12, 0.25)) * min(height, width) * (2 if most == 1 else 1)
        centre = rng.uniform(long, (width - long, height - long)).astype(np.float32)
        if any(np.linalg.norm(centre - other) < long + reach for other, reach in places):
            continue
        places.append((centre, long))
        class_id, angle, wide = int(rng.integers(len(NAMES))), rng.uniform(0, TURN), rng.uniform(0.4, 0.7)
        turned = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * ((long,), (long * wide,))
        around = np.linspace(0, TURN, 24, endpoint=False)
        corners = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)])
        unit = (np.stack([np.cos(around), np.sin(around)], 1), corners, np.array([(1, 0), (-1, 1), (-1, -1)]))[class_id]
        outline, box, points = ((part @ turned + centre).astype(np.float32) for part in (unit, corners, POINTS))
        colour = rng.integers(0, 200, 3)  # darker than the dot
        cv2.fillPoly(picture, [outline.round().astype(np.int32)], colour.tolist())
        cv2.circle(picture, points[0].round().astype(int).tolist(), max(round(long / 5), 2), (255, 255, 255), -1)
        shapes.append(Shape(class_id, outline, box, points))
    return picture, shapes


def visible(shape: Shape, scale: Points) -> Points:
    """Its key points in fractions of a picture whose width and height are `scale`, each with a 2: visible."""
    return np.concatenate([shape.points / scale, np.full((len(POINTS), 1), 2, np.float32)], 1)


def label(task: str, shape: Shape, width: int, height: int) -> str:
    """The line of a YOLO label file, in fractions of the picture."""
    scale = np.array((width, height), np.float32)
    box = (shape.xywh.reshape(2, 2) / scale).ravel()
    values = {
        "detect": box, "pose": np.concatenate([box, visible(shape, scale).ravel()]),
        "segment": (shape.outline / scale).ravel(), "obb": (shape.corners / scale).ravel(),
    }[task]  # fmt: skip
    return " ".join([str(shape.class_id), *(f"{value:.6f}" for value in values)])


def batch_of(task: str, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """BATCH pictures with what Ultralytics' losses ask for."""
    height, width = SIDE - 32 * int(rng.integers(2)), SIDE
    made = [drawn(rng, height, width, 1 if task == "classify" else 4) for _ in range(BATCH)]
    scale = np.array((width, height), np.float32)
    masks = np.zeros((BATCH, height // 4, width // 4), np.uint8)
    for mask, (_, shapes) in zip(masks, made, strict=True):
        for i, shape in enumerate(shapes):
            cv2.fillPoly(mask, [(shape.outline / 4).round().astype(np.int32)], i + 1)
    ids = np.zeros((BATCH, 256), np.uint8)  # the class of each number in `masks`
    every = [(i, shape) for i, (_, shapes) in enumerate(made) for shape in shapes]
    for i, (_, shapes) in enumerate(made):
        ids[i, 1 : len(shapes) + 1] = [shape.class_id for shape in shapes]
    size = np.concatenate([scale, scale])
    boxes = [np.array(s.xywhr) / (*size, 1) if task == "obb" else s.xywh / size for _, s in every]
    classes = torch.tensor([float(s.class_id) for _, s in every])
    return {
        "img": torch.from_numpy(np.stack([picture for picture, _ in made])).permute(0, 3, 1, 2) / 255,
        "batch_idx": torch.tensor([float(i) for i, _ in every]),
        "cls": classes.long() if task == "classify" else classes[:, None],
        "bboxes": torch.tensor(np.array(boxes), dtype=torch.float32),
        "masks": torch.from_numpy(masks),
        "sem_masks": torch.from_numpy(np.stack([lut[mask] for lut, mask in zip(ids, masks, strict=True)])),
        "keypoints": torch.tensor(np.array([visible(s, scale) for _, s in every]), dtype=torch.float32),
    }


def train(name: str, steps: int) -> Any:  # noqa: ANN401 - Ultralytics has no types
    """A network of this name, trained from random weights. The same `name` and `steps` give the same pictures."""
    from ultralytics.cfg import get_cfg  # only now: `layers.py` must import Ultralytics first

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    task = task_of(name)
    points = {"data_kpt_shape": (len(POINTS), 3)} if task == "pose" else {}
    network = MODELS.get(name.partition("-")[2], DetectionModel)(f"{name}.yaml", nc=len(NAMES), verbose=False, **points)
    network.args, network.names = get_cfg(), NAMES
    optimizer = torch.optim.AdamW(network.train().parameters(), weight_decay=0.01)
    rate = 5e-4 if task == "classify" else 2e-3  # it learns nothing at 2e-3
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for _ in tqdm(range(steps), unit="step", mininterval=10):
        loss, _ = network.loss(batch_of(task, rng))
        optimizer.zero_grad()
        torch.autograd.backward(loss.sum())
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    del network.criterion
    network.args = {"imgsz": SIDE, "task": task}
    return network.eval().half()


def task_of(name: str) -> str:
    """The task that the ending of a network's name says."""
    return {ending: task for task, ending in ENDINGS.items()}.get(name.partition("-")[2], "detect")


def write_pictures(folder: Path, task: str, count: int = PICTURES) -> None:
    """Writes pictures of two shapes and their labels. Raises OSError."""
    rng = np.random.default_rng(1)
    for n in range(count):
        height, width = (256 - 64 * (n % 2), 320) if task != "classify" else (240, 240)
        picture, shapes = drawn(rng, height, width, 1 if task == "classify" else 4)
        images = folder / "images" / (NAMES[shapes[0].class_id] if task == "classify" else "")
        images.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(images / f"{n:03}.jpg"), picture[..., ::-1])
        if task != "classify":
            (folder / "labels").mkdir(exist_ok=True)
            lines = [label(task, shape, width, height) for shape in shapes]
            (folder / "labels" / f"{n:03}.txt").write_text("\n".join(lines) + "\n")


def main(name: str, folder: Path, steps: int) -> None:
    """Writes the pictures and the network. Raises OSError."""
    write_pictures(folder, task_of(name))
    torch.save({"model": train(name, steps)}, folder / f"{name}.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="network and task, such as yolo11n-seg")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    main(**vars(parser.parse_args()))
