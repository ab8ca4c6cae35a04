"""Merges the boxes that were found in the tiles of a photo and in the whole, `tile_merge`.

Boxes match if they are of one class and overlap by MATCH. From the surest one on, each box takes those that match it
and were not taken yet. By the rules of SAHI 0.12, `nms` drops them, `greedy_nmm` merges them into one box around all,
and `nmm` also takes what matches one of those that were taken. A box is merged if it matches the merged box as far as
that has grown.

`uncut` is `nms_iou` for objects that the border of a tile does not cut. Of an object that it cuts, a tile shows a part,
which may look like a whole one. Such a box is dropped if a box that is not cut covers half of it, or if it would fit
into what the tile has in common with the next one: that shows all of the object, and what it finds there counts, even
if it is nothing. On mosaics of COCO photos that is worth 0.05 of mAP50 (loadtests/RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import ImageTooComplex
from serve_app.settings import MAX_DETECTIONS, PredictOptions
from serve_app.vision.boxes import Detections, Floats, Measure
from serve_app.vision.image import Letterbox
from serve_app.vision.tasks.task import Check

MATCH = 0.5  # SAHI's default
NEAR = 3  # pixels of the network input: a box that ends so near to the border of a tile is cut by it
MOST_BOXES = 20_000  # of all tiles; merging them takes 1 s on one core, turned ones that lie close together 50 s
Indices = NDArray[np.intp]


class Geometry(NamedTuple):
    """What the merging has to know of boxes."""

    extent: Callable[[Detections], Floats]  # the upright box around each, xyxy float32 (N, 4)
    overlaps: Callable[[Detections, Detections, Measure], Floats]  # of one with N others, float32 (N,)
    around: Callable[[Detections, Detections], Detections]  # the box around two, with the rest of the first one


def options_of_tile(options: PredictOptions) -> PredictOptions:
    """The options of one tile: `max_det` counts what is left in the whole photo, so it does not hold for a tile."""
    return options.model_copy(update={"max_det": MAX_DETECTIONS})


def check_count(parts: Sequence[Detections]) -> None:
    """Raises ImageTooComplex if the tiles of a photo have more boxes than can be merged."""
    if sum(map(len, parts)) > MOST_BOXES:
        raise ImageTooComplex(
            f"`tile`: the tiles have more than {MOST_BOXES} boxes: ask for a higher `conf`, a lower `max_det`, or "
            "larger tiles"
        )


def merged(
    parts: Sequence[Detections],
    letterboxes: Sequence[Letterbox],
    options: PredictOptions,
    geometry: Geometry,
    in_time: Check,
) -> tuple[Detections, list[list[int]]]:
    """The merged boxes, best first, and for each the indices in `joined(parts)` of those that are in it.

    `parts` has what was found in each network input, in pixels of the photo. `letterboxes[0]` is that of the whole.
    Calls `in_time` for each box.
    """
    found, kind = joined(parts), options.tile_merge
    class_id = np.zeros_like(found.class_id) if options.agnostic_nms else found.class_id
    x1, y1, x2, y2 = found.xyxy.T
    order = np.lexsort((y2, x2, y1, x1, -found.confidence))  # the boxes decide between equals, not the tiles' order
    cut = np.zeros(len(found), bool)
    if kind == "uncut":
        cut, doubled = borders(parts, letterboxes, options.overlap, geometry)
        order = np.concatenate([order[~cut[order]], order[(cut & ~doubled)[order]]])

    measure: Measure = "ios" if kind.endswith("ios") else "iou"

    def taken(i: int, free: Indices) -> Indices:
        in_time()
        one, others = found.take([i]), found.take(free)
        near = geometry.overlaps(one, others, measure) >= MATCH
        if not cut[i] and cut[free].any():
            near |= cut[free] & (geometry.overlaps(one, others, "covered") >= MATCH)
        return free[near]

    made, members = [], []
    for first, rest in groups(order, Neighbours(geometry.extent(found), class_id), taken, kind.startswith("nmm")):
        box, inside = found.take([first]), [first]
        for other in rest if "nmm" in kind else ():
            in_time()
            if geometry.overlaps(box, found.take([other]), measure)[0] >= MATCH:
                box = geometry.around(box, found.take([other]))
                inside.append(other)
        made.append(box)
        members.append(inside)
    kept = joined([found.take([]), *made])
    best = np.argsort(-kept.confidence, kind="stable")
    if "max_det" in options.model_fields_set:
        best = best[: options.max_det]
    return kept.take(best), [members[n] for n in best]


def groups(
    order: Indices, neighbours: Neighbours, takes: Callable[[int, Indices], Indices], transitive: bool
) -> list[tuple[int, list[int]]]:
    """In this order, the boxes that stay and those that each has taken; `transitive` is the rule of `nmm`."""
    taken_by, taken = np.full(neighbours.count, -1), dict[int, list[int]]()
    rank = np.full(neighbours.count, -1)  # boxes that are not in `order` are before all: nobody takes them
    rank[order] = np.arange(len(order))
    for i in order.tolist():
        if taken_by[i] < 0:
            taken_by[i], taken[i] = i, []
        elif not transitive:
            continue
        near = neighbours.of(i)
        free = near[(taken_by[near] < 0) & (rank[near] > rank[i])]
        if len(free):
            found = takes(i, free[np.argsort(rank[free])])
            taken_by[found] = taken_by[i]
            taken[int(taken_by[i])] += found.tolist()
    return list(taken.items())


class Neighbours:
    """Finds the boxes of one class that touch, without comparing each with each."""

    def __init__(self, extent: Floats, class_id: NDArray[np.int64]) -> None:
        self.count, self._class_id = len(extent), class_id
        self._x1, self._y1, self._x2, self._y2 = np.ascontiguousarray(extent.T)
        self._by_x1 = np.argsort(self._x1)
        self._sorted = self._x1[self._by_x1]
        self._widest = float((self._x2 - self._x1).max()) if self.count else 0.0

    def of(self, i: int) -> Indices:
        """The boxes of its class whose extent touches that of box `i`, with the box itself."""
        first, last = np.searchsorted(self._sorted, (self._x1[i] - self._widest, self._x2[i]), "right")
        near = self._by_x1[max(first - 1, 0) : last]
        touching = (self._x2[near] >= self._x1[i]) & (self._y2[near] >= self._y1[i]) & (self._y1[near] <= self._y2[i])
        same: Indices = near[touching & (self._class_id[near] == self._class_id[i])]
        return same


def borders(
    parts: Sequence[Detections], letterboxes: Sequence[Letterbox], overlap: float, geometry: Geometry
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether the border of its tile cuts each box, and whether the next tile then shows all of it; bool (N,) each."""
    whole, cut, doubled = letterboxes[0], [], []
    for found, tile in zip(parts, letterboxes, strict=True):
        extent = geometry.extent(found).reshape(-1, 2, 2)
        start, size = np.array((tile.tile_x, tile.tile_y)), np.array((tile.width, tile.height))
        near = NEAR / np.array((tile.scale_x, tile.scale_y))
        before = (extent[:, 0] < start + near) & (start > 0)
        behind = (extent[:, 1] > start + size - near) & (start + size < (whole.width, whole.height))
        crossing = before | behind  # (N, 2): a border that stands across x, across y
        fits = extent[:, 1] - extent[:, 0] < overlap * size
        cut.append(crossing.any(1))
        doubled.append(crossing.any(1) & (fits | ~crossing).all(1))
    return np.concatenate(cut), np.concatenate(doubled)


def joined(parts: Sequence[Detections]) -> Detections:
    """All boxes of one or more Detections."""
    extra = None if parts[0].extra is None else np.concatenate([one.extra for one in parts if one.extra is not None])
    return Detections(
        np.concatenate([one.xyxy for one in parts]),
        np.concatenate([one.confidence for one in parts]),
        np.concatenate([one.class_id for one in parts]),
        extra,
    )
