"""Boxes that are turned by an angle: corners, overlap, NMS.

They are Detections. `xyxy` has the corners before the turn, the first column of `extra` the angle in radians. A box is
turned by it around its centre, clockwise as y points down.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from serve_app.vision.boxes import Detections, Floats, Measure, shares

TINY = 1e-7


def middles(found: Detections) -> tuple[Floats, Floats]:
    """Centre x, y and width, height of each box, float32 (N, 2) each."""
    return found.xyxy.reshape(-1, 2, 2).mean(1), found.xyxy[:, 2:] - found.xyxy[:, :2]


def corners(found: Detections) -> Floats:
    """The corners of the turned boxes, float32 (N, 4, 2), in the order of Ultralytics: +w +h, +w -h, -w -h, -w +h."""
    assert found.extra is not None
    centre, size = middles(found)
    cos, sin = np.cos(found.extra[:, :1]), np.sin(found.extra[:, :1])
    along = np.concatenate([cos, sin], 1) * size[:, :1] / 2
    across = np.concatenate([-sin, cos], 1) * size[:, 1:] / 2
    return np.stack(
        [centre + along + across, centre + along - across, centre - along - across, centre - along + across], 1
    )


def extent(found: Detections) -> Floats:
    """The upright box around each, xyxy float32 (N, 4)."""
    points = corners(found)
    return np.concatenate([points.min(1), points.max(1)], 1)


def overlaps(one: Detections, others: Detections, measure: Measure) -> Floats:
    """How far a turned box overlaps with each of N others, float32 (N,)."""
    (first,), rest = corners(one), corners(others)
    common = np.zeros(len(others), np.float32)
    apart = (rest.max(1) <= first.min(0)).any(1) | (rest.min(1) >= first.max(0)).any(1)
    for n in np.flatnonzero(~apart):
        common[n] = common_area(first, rest[n])
    (area,), areas = middles(one)[1].prod(1), middles(others)[1].prod(1)
    return shares(common, area, areas, measure)


def common_area(one: Floats, other: Floats) -> float:
    """The area that two boxes have in common, from their `corners` (4, 2): one clipped at each edge of the other.

    Sutherland and Hodgman 1974. OpenCV's `intersectConvexConvex` and `rotatedRectangleIntersection` give wrong areas,
    also 0, where edges lie on one line.
    """
    left = [complex(*point) for point in one.tolist()]
    edges = [complex(*point) for point in other.tolist()]
    for start, end in zip(edges, [*edges[1:], edges[0]], strict=True):
        sides = [((point - start).conjugate() * (end - start)).imag for point in left]  # below 0: outside
        around = zip(left, sides, [*left[1:], *left[:1]], [*sides[1:], *sides[:1]], strict=True)
        left = []
        for point, side, following, next_side in around:
            if side >= 0:
                left.append(point)
            if side * next_side < 0:  # the edge between them crosses the line
                left.append(point + (following - point) * side / (side - next_side))
    return abs(sum((a.conjugate() * b).imag for a, b in zip(left, [*left[1:], *left[:1]], strict=True))) / 2


def around(one: Detections, other: Detections) -> Detections:
    """The smallest turned box around two; the rest is that of the first."""
    centre, size, degrees = cv2.minAreaRect(np.concatenate([*corners(one), *corners(other)]))
    half = np.array(size, np.float32) / 2
    xyxy = np.concatenate([centre - half, centre + half]).astype(np.float32)[None]
    return replace(one, xyxy=xyxy, extra=np.array([[np.radians(degrees)]], np.float32))


def non_max_suppression(found: Detections, iou: float, max_det: int, agnostic: bool) -> Detections:
    """Drops a box if its probabilistic IoU with any better one of its class is above `iou`, as Ultralytics does.

    Also with one that is dropped itself (Fast NMS, Bolya et al. 2019). `found` must be best first. Stops once
    `max_det` boxes are certain.
    """
    a, b, c = covariances(found)
    (x, y), class_id = middles(found)[0].T, np.zeros_like(found.class_id) if agnostic else found.class_id
    alive = np.ones(len(found), bool)
    kept: list[int] = []
    for i in range(len(found)):
        if alive[i]:
            kept.append(i)
        if len(kept) == max_det:
            break
        rest = i + 1 + np.flatnonzero(alive[i + 1 :] & (class_id[i + 1 :] == class_id[i]))
        dx, dy = x[i] - x[rest], y[i] - y[rest]
        alive[rest] = probiou(dx, dy, (a[i], b[i], c[i]), (a[rest], b[rest], c[rest])) <= iou
    return found.take(np.array(kept, np.intp))


def covariances(found: Detections) -> tuple[Floats, Floats, Floats]:
    """The Gaussian of each box: the covariances a of x, b of y and c of both, float32 (N,) each."""
    if found.extra is None or not len(found):
        return (np.empty(0, np.float32),) * 3
    wide, high = middles(found)[1].T ** 2 / 12
    cos, sin = np.cos(found.extra[:, 0]), np.sin(found.extra[:, 0])
    return wide * cos**2 + high * sin**2, wide * sin**2 + high * cos**2, (wide - high) * cos * sin


def probiou(dx: Floats, dy: Floats, one: tuple[Any, Any, Any], other: tuple[Floats, Floats, Floats]) -> Floats:
    """1 - Hellinger distance of the boxes' Gaussians (Llerena et al. 2021, arXiv 2106.06072).

    `dx` and `dy` are the distances of their centres, `one` and `other` their covariances.
    """
    a, b, c = (first + second for first, second in zip(one, other, strict=True))
    determinant = a * b - c**2
    apart = (a * dy**2 + b * dx**2) / (determinant + TINY) / 4 - c * dx * dy / (determinant + TINY) / 2
    areas = [(k[0] * k[1] - k[2] ** 2).clip(0) for k in (one, other)]
    unlike = np.log(determinant / (4 * np.sqrt(areas[0] * areas[1]) + TINY) + TINY) / 2
    similar: Floats = 1 - np.sqrt(1 - np.exp(-(apart + unlike).clip(TINY, 100)) + TINY)
    return similar
