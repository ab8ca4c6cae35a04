from __future__ import annotations

import numpy as np
import pytest

from serve_app.vision.boxes import Detections, candidates, non_max_suppression, to_photo
from serve_app.vision.image import Letterbox


def head(*anchors: tuple[float, ...]) -> np.ndarray:
    """Anchors as (centre x, centre y, width, height, score, class id)."""
    return np.array(anchors, np.float32).reshape(-1, 6).T


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


@pytest.mark.parametrize(
    ("anchors", "conf", "expected"),
    [
        pytest.param([], 0.1, [], id="no anchors"),
        pytest.param([(5, 5, 2, 4, 0.5, 0)], 0.5, [(4, 3, 6, 7, 0.5, 0)], id="the threshold itself passes"),
        pytest.param([(5, 5, 2, 4, 0.5, 0)], 0.51, [], id="just below does not"),
        pytest.param(
            [(5, 5, 2, 2, 0.6, 1), (9, 9, 2, 2, 0.9, 0)],
            0.1,
            [(8, 8, 10, 10, 0.9, 0), (4, 4, 6, 6, 0.6, 1)],
            id="best anchor first",
        ),
        pytest.param(
            [(5, 5, 2, 2, 0.6, 1), (9, 9, 2, 2, 0.6, 0)],
            np.array([0.6, 0.7], np.float32),
            [(8, 8, 10, 10, 0.6, 0)],
            id="a threshold for each class",
        ),
    ],
)
def test_candidates(anchors: list, conf: float, expected: list) -> None:
    got = candidates(head(*anchors), conf)
    want = found(*expected)
    np.testing.assert_allclose(got.xyxy, want.xyxy)
    np.testing.assert_allclose(got.confidence, want.confidence)
    np.testing.assert_array_equal(got.class_id, want.class_id)


A, HALF, APART = (0, 0, 10, 10), (0, 0, 10, 5), (20, 20, 30, 30)  # IoU of A and HALF: 0.5


@pytest.mark.parametrize(
    ("rows", "iou", "max_det", "kept"),
    [
        pytest.param([], 0.5, 300, [], id="nothing"),
        pytest.param([(*A, 0.9, 0), (*HALF, 0.8, 0)], 0.49, 300, [0.9], id="more overlap than allowed is merged"),
        pytest.param([(*A, 0.9, 0), (*HALF, 0.8, 0)], 0.5, 300, [0.9, 0.8], id="exactly as much is not"),
        pytest.param([(*A, 0.9, 0), (*A, 0.8, 1)], 0.1, 300, [0.9, 0.8], id="another class is another object"),
        pytest.param([(*A, 0.9, 0), (*APART, 0.8, 0)], 0.0, 300, [0.9, 0.8], id="apart"),
        pytest.param([(*A, 0.9, 0), (*APART, 0.8, 0)], 0.5, 1, [0.9], id="max_det keeps the best"),
        pytest.param([(5, 5, 5, 5, 0.9, 0), (5, 5, 5, 5, 0.8, 0)], 0.5, 300, [0.9, 0.8], id="boxes without area"),
    ],
)
def test_non_max_suppression(rows: list, iou: float, max_det: int, kept: list[float]) -> None:
    assert non_max_suppression(found(*rows), iou, max_det).confidence.tolist() == pytest.approx(kept)


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        pytest.param([(*A, 0.9, 0), (*A, 0.8, 1)], [0.9], id="another class in the same place"),
        pytest.param([(*A, 0.9, 2), (*HALF, 0.8, 1), (*A, 0.7, 0)], [0.9, 0.8], id="as much overlap as allowed"),
        pytest.param([(*A, 0.9, 0), (*APART, 0.8, 1)], [0.9, 0.8], id="apart"),
    ],
)
def test_agnostic_non_max_suppression(rows: list, kept: list[float]) -> None:
    assert non_max_suppression(found(*rows), 0.5, 300, agnostic=True).confidence.tolist() == pytest.approx(kept)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        pytest.param((0, 16, 64, 48), (0, 0, 128, 64), id="the whole photo"),
        pytest.param((16, 24, 32, 32), (32, 16, 64, 32), id="twice the size, less the bar"),
        pytest.param((-5, 0, 70, 64), (0, 0, 128, 64), id="cut at the edges"),
    ],
)
def test_to_photo(box: tuple[float, ...], expected: tuple[float, ...]) -> None:
    lying = Letterbox(width=128, height=64, scale_x=0.5, scale_y=0.5, left=0, top=16)
    assert to_photo(found((*box, 0.9, 0)), lying).xyxy[0].tolist() == list(expected)
