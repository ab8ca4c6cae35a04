"""The outline of a mask: its pieces as polygons, without their holes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from serve_app.vision.tasks.task import Floats

Outline = list[Floats]  # polygons (P, 2) of x, y
ROWS = 1000  # sampled at a time, because each pixel needs 8 bytes for its place
LONGEST = 1280  # pixels of the grid on which outlines are merged
SIDE = 256  # pixels of the longer side of the grid on which two outlines are compared


def of(mask: NDArray[np.uint8], left: int, top: int) -> Outline:
    """The outer edges of a mask, uint8 (h, w), whose corner is at left, top."""
    found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE) if mask.size else ((), None)
    return [piece.reshape(-1, 2).astype(np.float32) + np.array((left, top), np.float32) for piece in found]


def union(several: Sequence[Outline]) -> Outline:
    """The outline around all of these, drawn on a grid of at most LONGEST pixels."""
    pieces = [piece for outline in several for piece in outline]
    if len(several) == 1 or not pieces:
        return pieces
    points = np.concatenate(pieces)
    corner, size = np.floor(points.min(0)), np.ptp(points, 0)
    scale = min(LONGEST / max(float(size.max()), 1.0), 1.0)
    width, height = (np.ceil(size * scale) + 2).astype(int)
    mask = np.zeros((height, width), np.uint8)
    for piece in pieces:  # each alone, because OpenCV leaves out what two polygons of one call have in common
        cv2.fillPoly(mask, [((piece - corner) * scale).round().astype(np.int32)], 1)
    return [(piece / scale + corner).astype(np.float32) for piece in of(mask, 0, 0)]


def joined(outline: Outline) -> Floats:
    """All pieces as one polygon (P, 2): a line goes from each piece to the next, where they are near, and back.

    OpenCV gives the pieces row by row, so the next one is near. The time grows with the number of points only: masks
    of an untrained network have hundreds of pieces and thousands of points.
    """
    if not outline:
        return np.empty((0, 2), np.float32)
    piece, there, back = outline[0], [], []
    for following in outline[1:]:
        leave = np.abs(piece - following[0]).sum(1).argmin()
        enter = np.abs(following - piece[leave]).sum(1).argmin()
        there.append(piece[: leave + 1])
        back.append(piece[leave:])
        piece = np.concatenate([following[enter:], following[: enter + 1]])
    return np.concatenate([*there, piece, *back[::-1]])


def sampled(values: Floats, columns: NDArray[np.float64], rows: NDArray[np.float64]) -> Floats:
    """Values (h, w) between their pixels, bilinear, at each row and column; those of the edge beyond it."""
    made = [
        cv2.remap(values, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for part in np.array_split(rows, len(rows) // ROWS + 1)
        for x, y in [np.meshgrid(columns.astype(np.float32), part.astype(np.float32))]
        if x.size
    ]
    return np.concatenate(made) if made else np.empty((0, 0), np.float32)


def overlap(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> float:
    """The IoU of two polygons, each with `x` and `y` of its points, on a grid of SIDE pixels around both."""
    lines = [np.array([line["x"], line["y"]], np.float32).T for line in (one, other)]
    both = np.concatenate(lines)
    corner, size = both.min(0), max(float(np.ptp(both, 0).max()), 1e-6)
    filled = [np.zeros((SIDE, SIDE), np.uint8) for _ in lines]
    for mask, line in zip(filled, lines, strict=True):
        cv2.fillPoly(mask, [((line - corner) * (SIDE - 1) / size).round().astype(np.int32)], 1)
    shared, either = (filled[0] & filled[1]).sum(), (filled[0] | filled[1]).sum()
    return float(shared / either)
