"""Makes random training crops of labelled photos for train.py: zoom, shift, mirror, colour, mosaics of four photos."""

from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

GREY = 114  # the letterbox colour of YOLO
Sample = tuple[np.ndarray, np.ndarray]  # BGR uint8 (H, W, 3), float32 (N, 5): class, x1, y1, x2, y2 in pixels


def read_photos(paths: list[Path]) -> list[Sample]:
    """Reads photos with the boxes of their YOLO label files; without such a file the array is empty.

    Raises ValueError for a file that is no photo.
    """
    samples = []
    for path in paths:
        image = cv2.imread(str(path))
        if image is None:
            raise ValueError(f"{path.name} is not a photo that OpenCV can read")
        height, width = image.shape[:2]
        label = Path(str(path.with_suffix(".txt")).replace("/images/", "/labels/"))
        samples.append((image, read_labels(label, width, height)))
    return samples


def read_labels(file: Path, width: int, height: int) -> np.ndarray:
    """The boxes of a YOLO label file for a photo of this size in pixels, as in `Sample`; none if there is no file."""
    if not file.exists() or not file.stat().st_size:
        return np.zeros((0, 5), np.float32)
    rows = np.loadtxt(file, ndmin=2, dtype=np.float32)
    centre, half = rows[:, 1:3], rows[:, 3:5] / 2
    corners = np.hstack([centre - half, centre + half]) * (width, height, width, height)
    return np.hstack([rows[:, :1], corners]).astype(np.float32)


def place(
    sample: Sample,
    canvas: np.ndarray,
    window: tuple[int, int, int, int],
    zoom_log2: tuple[float, float],
    rng: random.Random,
) -> np.ndarray:
    """Draws a photo with random zoom, shift and mirroring into a window (x1, y1, x2, y2) of the canvas.

    `zoom_log2` is a range; 0 fits the photo's long side to the window's long side.

    Returns its boxes (N, 5) in canvas pixels. Boxes with 30 % or less of their area in the window, or with a side of 3
    pixels or less there, are dropped.
    """
    image, boxes = sample
    x1, y1, x2, y2 = window
    height, width = image.shape[:2]
    zoom = max(x2 - x1, y2 - y1) / max(height, width) * 2 ** rng.uniform(*zoom_log2)
    flip = rng.random() < 0.5
    squeeze = 2 ** rng.uniform(-0.15, 0.15)
    zoom_x, zoom_y = zoom * squeeze, zoom / squeeze
    shift_x = (x2 - x1 - width * zoom_x) * rng.random()
    shift_y = (y2 - y1 - height * zoom_y) * rng.random()
    matrix = np.array([[-zoom_x if flip else zoom_x, 0, width * zoom_x + shift_x if flip else shift_x],
                       [0, zoom_y, shift_y]])  # fmt: skip
    how = cv2.INTER_AREA if zoom < 0.6 else cv2.INTER_LINEAR
    canvas[y1:y2, x1:x2] = cv2.warpAffine(image, matrix, (x2 - x1, y2 - y1), flags=how, borderValue=(GREY,) * 3)
    if not len(boxes):
        return boxes
    xs = boxes[:, [1, 3]] * matrix[0, 0] + matrix[0, 2] + x1
    ys = boxes[:, [2, 4]] * zoom_y + shift_y + y1
    full = np.stack([xs.min(1), ys.min(1), xs.max(1), ys.max(1)], 1)
    kept = np.clip(full, (x1, y1, x1, y1), (x2, y2, x2, y2))
    area, area_full = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (kept, full))
    visible = (area > 0.3 * area_full) & (np.minimum(kept[:, 2] - kept[:, 0], kept[:, 3] - kept[:, 1]) > 3)
    inside: np.ndarray = np.hstack([boxes[:, :1], kept])[visible].astype(np.float32)
    return inside


def jitter(image: np.ndarray, rng: random.Random) -> np.ndarray:
    """Random hue, saturation and brightness for BGR uint8 (H, W, 3). 5 % of images turn grey, 5 % are blurred."""
    gains = np.array([rng.uniform(-1, 1) * g for g in (0.015, 0.6, 0.4)]) + 1
    levels = np.arange(256)
    tables = (levels * gains[0] % 180, np.clip(levels * gains[1], 0, 255), np.clip(levels * gains[2], 0, 255))
    channels = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    mixed = cv2.merge([cv2.LUT(c, t.astype(np.uint8)) for c, t in zip(channels, tables, strict=True)])
    image = cv2.cvtColor(mixed, cv2.COLOR_HSV2BGR)
    if rng.random() < 0.05:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    if rng.random() < 0.05:
        image = cv2.blur(image, (3, 3))
    return image


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """`count` random crops. Each photo comes from one of the groups, with the probabilities `weights`."""

    def __init__(
        self,
        groups: list[list[Sample]],
        weights: list[float],
        *,
        size: int,
        count: int,
        zoom_log2: tuple[float, float],
        mosaic: float,
        seed: int,
    ) -> None:
        self.groups, self.weights, self.size, self.count, self.seed = groups, weights, size, count, seed
        self.zoom_log2, self.mosaic = zoom_log2, mosaic

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """A crop as uint8 RGB (3, S, S), and its boxes as float32 (N, 5): class, centre and size as fractions of S."""
        rng = random.Random(self.seed * 1_000_003 + index)
        size = self.size
        canvas = np.full((size, size, 3), GREY, np.uint8)
        windows = [(0, 0, size, size)]
        if rng.random() < self.mosaic:
            x, y = (int(size * rng.uniform(0.3, 0.7)) for _ in "xy")
            windows = [(0, 0, x, y), (x, 0, size, y), (0, y, x, size), (x, y, size, size)]
        groups = rng.choices(self.groups, self.weights, k=len(windows))
        boxes = np.vstack(
            [place(rng.choice(g), canvas, w, self.zoom_log2, rng) for g, w in zip(groups, windows, strict=True)]
        )
        centres = np.hstack(
            [boxes[:, :1], (boxes[:, 1:3] + boxes[:, 3:5]) / 2 / size, (boxes[:, 3:5] - boxes[:, 1:3]) / size]
        )
        rgb = np.ascontiguousarray(jitter(canvas, rng)[:, :, ::-1].transpose(2, 0, 1))
        return torch.from_numpy(rgb), torch.from_numpy(centres.astype(np.float32))


def collate(items: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The batch that Ultralytics' detection loss reads."""
    images, labels = zip(*items, strict=True)
    index = torch.cat([torch.full((len(rows),), i, dtype=torch.float32) for i, rows in enumerate(labels)])
    rows = torch.cat(labels)
    return {"img": torch.stack(images), "batch_idx": index, "cls": rows[:, :1], "bboxes": rows[:, 1:]}
