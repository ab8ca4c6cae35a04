"""Boxes of several tiles become one, by the rules of SAHI, and without what the border of a tile cuts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import ImageTooComplex
from serve_app.settings import PredictOptions
from serve_app.vision import boxes
from serve_app.vision.boxes import Detections
from serve_app.vision.image import Letterbox
from serve_app.vision.tasks import masks, merging, outlines, turned_boxes
from serve_app.vision.tasks.by_name import TASKS
from serve_app.vision.tasks.segment import Candidates

WHOLE = Letterbox(1000, 1000, 0.32, 0.32, 0, 0)
KINDS = ["nms_iou", "nms_ios", "greedy_nmm_iou", "greedy_nmm_ios", "nmm_iou", "nmm_ios"]
Box = tuple[int, int, int, int, float, int]  # x1, y1, x2, y2, confidence, class


def detections(rows: list[Box]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def merge(rows: list[Box], kind: str, **options: bool | int) -> list[Box]:
    asked = PredictOptions.model_validate({"tile": 320, "tile_merge": kind} | options)
    found = merging.merged([detections(rows)], [WHOLE], asked, TASKS["detect"].geometry, lambda: None)[0]
    assert all(a >= b for a, b in pairwise(found.confidence.tolist()))
    return as_rows(found)


def as_rows(found: Detections) -> list[Box]:
    corners = [tuple(map(round, box)) for box in found.xyxy.tolist()]
    scores, ids = found.confidence.astype(float).round(4).tolist(), found.class_id.tolist()
    return [(*box, score, k) for box, score, k in zip(corners, scores, ids, strict=True)]


def share(one: Box, other: Box, measure: str) -> float:
    width = max(min(one[2], other[2]) - max(one[0], other[0]), 0)
    height = max(min(one[3], other[3]) - max(one[1], other[1]), 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return width * height / (min(areas) if measure == "ios" else sum(areas) - width * height)


def by_the_rules(rows: list[Box], kind: str) -> list[Box]:
    """SAHI's rules in plain loops."""
    rule, _, measure = kind.rpartition("_")
    rows = sorted(rows, key=lambda r: -r[4])
    owner: dict[int, int] = {}
    taken: dict[int, list[int]] = {}
    for i, one in enumerate(rows):
        if i not in owner:
            owner[i], taken[i] = i, []
        elif rule != "nmm":
            continue
        for j in range(i + 1, len(rows)):
            if j not in owner and rows[j][5] == one[5] and share(one, rows[j], measure) >= 0.5:
                owner[j] = owner[i]
                taken[owner[i]].append(j)
    made = []
    for i, others in taken.items():
        box = rows[i]
        for j in others if rule != "nms" else []:
            if share(box, rows[j], measure) >= 0.5:
                grown = (*map(min, box[:2], rows[j][:2]), *map(max, box[2:4], rows[j][2:4]))
                box = (*grown, *box[4:])
        made.append(box)
    return made


corner, side = st.integers(0, 60), st.integers(5, 50)


@st.composite
def crowds(draw: st.DrawFn) -> list[Box]:
    """Up to 25 boxes close together, no two equally sure."""
    scores = draw(st.lists(st.integers(1, 999), min_size=0, max_size=25, unique=True))
    made = []
    for score in scores:
        x, y = draw(corner), draw(corner)
        made.append((x, y, x + draw(side), y + draw(side), score / 1000, draw(st.integers(0, 1))))
    return made


@pytest.mark.parametrize("kind", KINDS)
@given(crowds())
@settings(max_examples=150)
def test_the_rules_of_sahi(kind: str, rows: list[Box]) -> None:
    assert merge(rows, kind) == by_the_rules(rows, kind)


@given(crowds(), st.randoms(use_true_random=False))
def test_the_order_of_the_tiles_does_not_matter(rows: list[Box], random: st.DrawFn) -> None:
    equal = [(*row[:4], 0.5, row[5]) for row in rows]
    mixed = list(equal)
    random.shuffle(mixed)
    for kind in (*KINDS, "uncut"):
        assert sorted(merge(equal, kind)) == sorted(merge(mixed, kind))


def test_what_sahi_itself_makes_of_a_chain() -> None:
    """Three boxes in a row, each half over the next: what sahi 0.12.8 returns, with IOU replaced by IOS at 0.5."""
    row: list[Box] = [(0, 0, 40, 10, 0.9, 0), (20, 0, 60, 10, 0.8, 0), (40, 0, 80, 10, 0.7, 0)]
    assert merge(row, "nms_ios") == [row[0], row[2]]
    assert merge(row, "greedy_nmm_ios") == [(0, 0, 60, 10, 0.9, 0), row[2]]
    assert merge(row, "nmm_ios") == [(0, 0, 80, 10, 0.9, 0)]


def test_boxes_of_two_classes_only_with_agnostic_nms() -> None:
    row: list[Box] = [(0, 0, 40, 40, 0.9, 0), (1, 1, 40, 40, 0.8, 1)]
    assert merge(row, "uncut") == merge(row, "greedy_nmm_ios") == row
    assert merge(row, "uncut", agnostic_nms=True) == row[:1]
    assert merge(row, "greedy_nmm_ios", agnostic_nms=True) == [(0, 0, 40, 40, 0.9, 0)]


def test_max_det_only_if_the_request_says_it() -> None:
    many: list[Box] = [(x, y, x + 5, y + 5, (x + y) / 2000, 0) for x in range(0, 200, 10) for y in range(1, 202, 10)]
    assert len(merge(many, "uncut")) == len(many) > 300
    assert merge(many, "uncut", max_det=7) == merge(many, "uncut")[:7]


def test_max_det_counts_objects_and_not_their_parts() -> None:
    """The surest box of the tile is a part, which the next tile shows whole."""
    part, whole_one = (280, 50, 320, 150, 0.9, 0), (20, 20, 60, 60, 0.8, 0)
    found = TASKS["detect"].merged(
        [detections([]), detections([part, whole_one]), detections([])],
        [WHOLE, tile(0, 0), tile(256, 0)],
        PredictOptions(tile=320, max_det=1),
        lambda: None,
    )
    assert [round(float(x)) for x in found.xyxy[0]] == list(whole_one[:4])


@pytest.mark.parametrize(("name", "columns"), [("detect", 0), ("segment", 32), ("pose", 51), ("obb", 1)])
def test_no_boxes_at_all(name: str, columns: int) -> None:
    nothing = replace(detections([]), extra=np.empty((0, columns), np.float32))
    found = TASKS[name].merged([nothing, nothing], [WHOLE, tile(0, 0)], PredictOptions(tile=320), lambda: None)
    assert not len(found)
    assert TASKS[name].parts(found) == []


def tile(x: int, y: int) -> Letterbox:
    return Letterbox(320, 320, 1.0, 1.0, 0, 0, x, y)


def uncut(*parts: tuple[Letterbox, list[Box]]) -> list[Box]:
    found = [detections(rows) for _, rows in parts]
    letterboxes = [box for box, _ in parts]
    return as_rows(
        merging.merged(found, letterboxes, PredictOptions(tile=320), TASKS["detect"].geometry, lambda: None)[0]
    )


def test_a_part_of_an_object_gives_way_to_the_whole() -> None:
    whole, part = (200, 50, 380, 150, 0.4, 0), (200, 50, 320, 150, 0.9, 0)
    assert uncut((WHOLE, [whole]), (tile(0, 0), [part])) == [whole]


def test_a_small_object_does_not_stand_for_the_large_one_around_it() -> None:
    """The small one is whole, but covers little of the large one, which its tile cuts."""
    large, small = (150, 20, 320, 300, 0.9, 0), (180, 200, 220, 260, 0.3, 0)
    assert uncut((WHOLE, []), (tile(0, 0), [large, small])) == [large, small]


def test_a_part_that_the_next_tile_shows_whole_is_dropped() -> None:
    """64 pixels are in both tiles, so an object of 50 that the first one cuts is whole in the second."""
    assert uncut((WHOLE, []), (tile(0, 0), [(280, 50, 320, 150, 0.9, 0)]), (tile(256, 0), [])) == []


def test_a_part_that_nobody_shows_whole_stays() -> None:
    part = (200, 50, 320, 150, 0.9, 0)
    assert uncut((WHOLE, []), (tile(0, 0), [part])) == [part]
    other: Box = (256, 50, 400, 150, 0.8, 0)
    assert uncut((WHOLE, []), (tile(0, 0), [part]), (tile(256, 0), [other])) == [part, other]


def test_the_edge_of_the_photo_cuts_nothing() -> None:
    at_the_edges = [(0, 0, 50, 50, 0.9, 0), (950, 950, 1000, 1000, 0.8, 0)]
    found = uncut((WHOLE, []), (tile(0, 0), at_the_edges[:1]), (tile(680, 680), at_the_edges[1:]))
    assert found == at_the_edges


def test_too_many_boxes_are_refused() -> None:
    many = detections([(0, 0, 9, 9, 0.5, 0)]).take([0] * (merging.MOST_BOXES // 2))
    merging.check_count([many, many])
    with pytest.raises(ImageTooComplex, match="20000 boxes"):
        merging.check_count([many, many, detections([(0, 0, 9, 9, 0.5, 0)])])


turned = st.tuples(
    st.integers(0, 100), st.integers(0, 100), st.integers(4, 60), st.integers(4, 60), st.floats(-1.6, 1.6)
)


def obb(*rows: tuple[float, float, float, float, float]) -> Detections:
    """Boxes by centre, size and angle."""
    x, y, w, h, angle = np.array(rows, np.float32).T
    xyxy = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
    return Detections(
        xyxy, np.linspace(0.9, 0.5, len(rows), dtype=np.float32), np.zeros(len(rows), np.int64), angle[:, None]
    )


@given(turned, turned)
@settings(max_examples=500)
def test_the_overlap_of_turned_boxes(one: tuple[float, ...], other: tuple[float, ...]) -> None:
    """Beside a count of points of the first box that lie in the second."""
    (x, y, w, h, angle), (u, v, width, height, turn) = one, other
    places = (np.arange(300) + 0.5) / 300 - 0.5
    along, across = np.meshgrid(places * w, places * h)
    points = (along + 1j * across) * np.exp(1j * angle) + complex(x, y)
    seen = (points - complex(u, v)) * np.exp(-1j * turn)
    common = float(((abs(seen.real) <= width / 2) & (abs(seen.imag) <= height / 2)).mean()) * w * h
    wholes = {"iou": w * h + width * height - common, "ios": min(w * h, width * height), "covered": width * height}
    for measure, whole in wholes.items():
        got = turned_boxes.overlaps(obb(one), obb(other), measure)[0]
        assert got == pytest.approx(common / whole, abs=0.02 * w * h / whole)


@given(turned, turned)
def test_the_box_around_two_turned_ones_holds_both(one: tuple[float, ...], other: tuple[float, ...]) -> None:
    first, second = obb(one), obb(other)
    around = turned_boxes.corners(turned_boxes.around(first, second))[0]
    for point in np.concatenate([*turned_boxes.corners(first), *turned_boxes.corners(second)]):
        assert cv2.pointPolygonTest(cv2.convexHull(around), point.tolist(), measureDist=True) > -0.1


def test_ships_side_by_side_are_two() -> None:
    """Their upright boxes overlap by 0.67, the turned ones not at all."""
    ships = obb((50, 50, 100, 10, np.pi / 4), (60, 40, 100, 10, np.pi / 4))
    upright = replace(ships, xyxy=turned_boxes.extent(ships))
    assert boxes.overlaps(upright.take([0]), upright.take([1]), "iou")[0] > 0.6
    for kind in ("uncut", "greedy_nmm_ios"):
        options = PredictOptions.model_validate({"tile": 320, "tile_merge": kind})
        assert len(merging.merged([ships], [WHOLE], options, TASKS["obb"].geometry, lambda: None)[0]) == 2


def test_turned_boxes_of_two_tiles_become_one() -> None:
    halves = obb((40, 50, 60, 10, 0.5), (50, 55.46, 60, 10, 0.5))
    options = PredictOptions(tile=320, tile_merge="greedy_nmm_ios")
    found, members = merging.merged([halves], [WHOLE], options, TASKS["obb"].geometry, lambda: None)
    assert members == [[0, 1]]
    ((size,), (angle,)) = turned_boxes.middles(found)[1], found.extra[:, 0:1]
    assert sorted(size) == pytest.approx([10, 71.4], abs=0.1)
    assert (angle[0] - 0.5) % (np.pi / 2) == pytest.approx(0, abs=0.02)


def square(x: int, y: int, side: int) -> outlines.Outline:
    return [np.array([(x, y), (x, y + side), (x + side, y + side), (x + side, y)], np.float32)]


def candidates(*rows: Box) -> Candidates:
    """Boxes whose masks fill them."""
    found, prototypes = detections(list(rows)), np.ones((32, 80, 80), np.float32)
    return Candidates(found.xyxy, found.confidence, found.class_id, np.ones((len(rows), 32), np.float32), prototypes)


def parts(merge: str, **options: bool) -> list[dict[str, Any]]:
    """Two tiles, of which each shows a part of one object, and the second one another object."""
    first = candidates((216, 40, 320, 80, 0.9, 0))
    second = candidates((0, 40, 104, 80, 0.8, 0), (200, 200, 240, 240, 0.7, 0))
    asked = PredictOptions.model_validate({"tile": 320, "tile_merge": merge} | options)
    letterboxes = [WHOLE, tile(0, 0), tile(256, 0)]
    found = TASKS["segment"].merged([candidates(), first, second], letterboxes, asked, lambda: None)
    return [dict(part) for part in TASKS["segment"].parts(found)]


def test_the_outline_of_a_merged_object_is_around_both_masks() -> None:
    one, other = parts("greedy_nmm_ios")
    assert one["box"] == {"x1": 216, "y1": 40, "x2": 360, "y2": 80}
    assert outlines.overlap(one["segments"], {"x": [216, 359, 359, 216], "y": [40, 40, 79, 79]}) > 0.98
    assert other["box"] == {"x1": 456, "y1": 200, "x2": 496, "y2": 240}
    assert (min(other["segments"]["x"]), max(other["segments"]["x"])) == (456, 495)


def test_the_best_box_keeps_its_own_outline() -> None:
    one, _ = parts("nms_ios")
    assert one["segments"] == {"x": [216, 216, 319, 319], "y": [40, 79, 79, 40]}
    assert all("segments" not in part for part in parts("nms_ios", masks=False))


def test_masks_are_made_only_of_boxes_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    of_boxes = masks.of_boxes
    monkeypatch.setattr(
        masks, "of_boxes", lambda kept, prototypes: made.append(len(kept)) or of_boxes(kept, prototypes)
    )
    for merge, of_each in (("nms_ios", [0, 1, 1]), ("greedy_nmm_ios", [0, 1, 2])):
        made.clear()
        parts(merge)
        assert made == of_each


def test_the_deadline_is_looked_at_for_each_tile() -> None:
    looks = []
    for name in ("detect", "segment"):
        boxes_of = [candidates((0, 0, 9, 9, 0.5, 0))] * 3
        TASKS[name].merged(boxes_of, [WHOLE] * 3, PredictOptions(tile=320), lambda: looks.append(1))
        assert len(looks) >= 3 + 1, name
        looks.clear()


def test_masks_far_apart_stay_two_pieces() -> None:
    (one, other) = outlines.union([square(0, 0, 10), square(100, 0, 10)])
    assert {tuple(np.ptp(one, 0)), tuple(np.ptp(other, 0))} == {(10, 10)}


def test_outlines_larger_than_the_grid_are_merged_on_a_coarser_one() -> None:
    (piece,) = outlines.union([square(100, 100, 6000), square(3000, 100, 6000)])
    np.testing.assert_allclose([piece.min(0), piece.max(0)], [(100, 100), (9000, 6100)], atol=10)


def test_key_points_of_a_merged_object_are_those_of_the_surest() -> None:
    found = replace(
        detections([(0, 0, 40, 40, 0.9, 0), (10, 0, 50, 40, 0.8, 0)]),
        extra=np.arange(12, dtype=np.float32).reshape(2, 6),
    )
    options = PredictOptions(tile=320, tile_merge="greedy_nmm_ios")
    one, _ = merging.merged([found], [WHOLE], options, TASKS["pose"].geometry, lambda: None)
    (part,) = TASKS["pose"].parts(one)
    assert (part["box"]["x2"], part["keypoints"]["x"]) == (50, [0, 3])
