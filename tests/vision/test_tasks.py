"""Each task of each family: it loads, and what it finds is what Ultralytics' own code makes of the same network input.

The networks have random weights, spread out so that they find something, because no trained ones can be had offline.
"""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch

from loadtests.benchmarks.random_networks import ENDINGS, OF_TASKS, checkpoint, network
from loadtests.benchmarks.tasks import Input, Same, compare
from loadtests.gpu.cpu_stream import CpuStream
from serve_app.errors import ImageTooComplex, WeightsError
from serve_app.settings import PredictOptions
from serve_app.vision import image, sample_photos
from serve_app.vision.boxes import Detections
from serve_app.vision.engines.checkpoint import names_of, read_checkpoint, task_of
from serve_app.vision.engines.cuda import CudaEngine
from serve_app.vision.engines.engine import Engine, OnSquares
from serve_app.vision.engines.openvino import OpenVinoEngine, graph
from serve_app.vision.engines.pytorch import TorchEngine
from serve_app.vision.image import Letterbox
from serve_app.vision.tasks import masks, outlines, results, turned_boxes
from serve_app.vision.tasks.by_name import TASKS
from serve_app.vision.tasks.segment import Candidates
from serve_app.vision.tasks.task import Task, Units, recognise
from tests.checkpoints import damaged

SIZE = 160


def inputs(crops: bool, size: int = SIZE) -> list[Input]:
    """Parts of photos of several shapes. Without grey ones: random networks are equally sure of everything on them."""
    bus, zidane = (image.decode(path.read_bytes(), 10**8) for path in sample_photos.files())
    small = [bus[::3, ::3], zidane[::3, ::3], bus[300:900:3, 90:390:3]]
    large = [bus[y : y + 240, x : x + 180] for y in (100, 340) for x in (200, 500)]
    parts = [part.copy() for part in small + large]
    return [image.middle_square(p, size, p.shape[:2]) if crops else image.letterbox(p, size) for p in parts]


def agrees(same: Same) -> None:
    """Equal in float32 up to its last digits, which random networks amplify."""
    assert same.objects > 5
    assert same.missed <= same.objects // 50
    assert same.extra <= same.objects // 25, "among them those with a side of less than two pixels"
    assert np.quantile(same.box, 0.01) >= 0.99
    assert np.quantile(same.mask, 0.01) >= 0.98
    assert np.quantile(same.points, 0.99) <= 0.5
    assert np.quantile(same.angle, 0.99) <= 0.5
    assert max(same.score) <= 0.01


@pytest.mark.parametrize("name", OF_TASKS)
def test_it_finds_what_ultralytics_finds(name: str) -> None:
    own = network(name)
    content = checkpoint({"model": copy.deepcopy(own).half()})
    own = copy.deepcopy(own).half().float()
    loaded = read_checkpoint(content)
    task = task_of(loaded)
    assert ENDINGS[task.name] == name.partition("-")[2]
    conf = 0.0 if task.name == "classify" else 0.4
    photos = inputs(task.crops)
    exact = TorchEngine(copy.deepcopy(loaded), 1)
    agrees(compare(exact, own, photos, conf))
    if task.name == "segment":
        agrees(compare(exact, own, photos, conf, native=True))
    fast = OpenVinoEngine(graph(copy.deepcopy(loaded)), names_of(loaded), task, "float32", 1)
    close(fast, exact, photos)
    close(CudaEngine(copy.deepcopy(loaded), SIZE, "float32", CpuStream), OnSquares(exact, SIZE), photos)


def close(engine: Engine, exact: Engine, photos: list[Input]) -> None:
    """Whether the outputs are equal, but for the ids of classes that are as good as equal."""
    images = [network_input for network_input, _ in photos]
    for got, wanted in zip(engine(images), exact(images), strict=True):
        assert [array.shape for array in got] == [array.shape for array in wanted]
        rows = [row for row in range(len(wanted[0])) if row != 5] if wanted[0].ndim == 2 else slice(None)
        for one, other in zip((got[0][rows], *got[1:]), (wanted[0][rows], *wanted[1:]), strict=True):
            scale = max(float(np.abs(other).max()), 1)
            assert np.quantile(np.abs(one - other), 0.99) <= 1e-3 * scale


@pytest.mark.parametrize("name", ["yolo26n-seg", "yolo26n-pose", "yolo26n-obb"])
@pytest.mark.parametrize("how", ["asked for", "fused"])
def test_a_head_without_nms_serves_if_the_file_says_so(name: str, how: str) -> None:
    own = copy.deepcopy(network(name))
    own.model[-1].end2end = True
    for part in own.model[-1].one2one_cv3:  # else both heads are the same
        part[-1].bias.data += torch.tensor([1.0, -1.0, 0.5])
    if how == "fused":
        own.fuse(verbose=False)
    loaded = read_checkpoint(checkpoint({"model": own}))
    other = TorchEngine(read_checkpoint(checkpoint({"model": network(name)})), 1)
    (network_input, letterbox), *_ = inputs(False)
    engine = TorchEngine(loaded, 1)
    found, others = (recognise(engine.task, one([network_input])[0], letterbox, 0.3) for one in (engine, other))
    assert len(found)
    assert len(found) != len(others) or not np.array_equal(found.confidence, others.confidence), "another head"


def test_key_points_without_visibility_have_none() -> None:
    torch.manual_seed(0)
    own = type(network("yolov8n-pose"))("yolov8n-pose.yaml", nc=1, data_kpt_shape=(5, 2), verbose=False).eval()
    engine = TorchEngine(read_checkpoint(checkpoint({"model": own})), 1)
    (network_input, letterbox), *_ = inputs(False)
    (output,) = engine([network_input])
    assert output[0].shape[0] == 6 + 5 * 3
    best = recognise(engine.task, output, letterbox, float(output[0][4].max()))
    (one, *_) = results.of(best, engine.task, ("a",))
    assert one["keypoints"].keys() == {"x", "y"}
    assert len(one["keypoints"]["x"]) == 5
    assert engine.task.coco([one], 2)[0]["keypoints"][2::3] == [1.0] * 5


@pytest.mark.parametrize("name", ["yolov8n-seg", "yolo26n-pose", "yolo11n-obb", "yolov8n-cls"])
def test_damaged_pickles_give_our_own_errors(name: str) -> None:
    refused = 0
    for file in damaged(checkpoint({"model": network(name)}).getvalue(), 30):
        try:
            names_of(read_checkpoint(io.BytesIO(file)))
        except WeightsError:
            refused += 1
    assert refused


def test_a_network_without_the_head_of_its_task_is_refused() -> None:
    own = copy.deepcopy(network("yolov8n-cls"))
    own.__class__ = type(network("yolov8n-seg"))
    with pytest.raises(WeightsError, match="without the head of its task"):
        read_checkpoint(checkpoint({"model": own}))


def turned(*rows: tuple[float, float, float, float, float, float, int]) -> Detections:
    """Boxes of centre x, y, width, height, angle, score, class id."""
    table = np.array(rows, np.float32).reshape(-1, 7)
    xyxy = np.concatenate([table[:, :2] - table[:, 2:4] / 2, table[:, :2] + table[:, 2:4] / 2], 1)
    return Detections(xyxy, table[:, 5], table[:, 6].astype(np.int64), table[:, 4:5])


def test_turned_boxes_are_suppressed_as_ultralytics_does() -> None:
    """Many boxes around a few places: a box is dropped for a better one even if that is dropped itself."""
    from ultralytics.utils.metrics import batch_probiou
    from ultralytics.utils.nms import TorchNMS

    rng = np.random.default_rng(0)
    rows = [
        (x + rng.normal(0, 4), y + rng.normal(0, 4), rng.uniform(20, 60), rng.uniform(5, 40), rng.uniform(-1, 2), s, k)
        for s, (x, y, k) in zip(
            np.linspace(1, 0.1, 400), rng.choice([(50, 50, 0), (80, 60, 0), (55, 52, 1)], 400), strict=True
        )
    ]
    found = turned(*rows)
    for iou in (0.3, 0.7):
        centre, size = turned_boxes.middles(found)
        shifted = centre + found.class_id[:, None] * 7680
        rboxes = torch.from_numpy(np.concatenate([shifted, size, found.extra], 1))
        scores = torch.from_numpy(found.confidence)
        wanted = TorchNMS.fast_nms(rboxes, scores, iou, iou_func=batch_probiou).tolist()
        kept = turned_boxes.non_max_suppression(found, iou, 300, agnostic=False)
        assert kept.confidence.tolist() == found.confidence[wanted].tolist()
        few = turned_boxes.non_max_suppression(found, iou, 3, agnostic=False)
        assert few.confidence.tolist() == found.confidence[wanted][:3].tolist()
    assert not len(turned_boxes.non_max_suppression(turned(), 0.5, 300, agnostic=False))


def test_corners_turn_clockwise_and_overlap_by_their_area() -> None:
    right, down = (turned_boxes.corners(turned((50, 50, 40, 20, angle, 1, 0)))[0] for angle in (0, np.pi / 2))
    assert right.tolist() == [[70, 60], [70, 40], [30, 40], [30, 60]]
    np.testing.assert_allclose(down, [[40, 70], [60, 70], [60, 30], [40, 30]], atol=1e-4)
    task = TASKS["obb"]
    one, half = (task.parts(turned((50, 50, width, 20, 0.3, 1, 0)))[0] for width in (40, 20))
    assert task.overlap(one, one) == 1
    assert task.overlap(one, half) == pytest.approx(0.5, abs=0.03)


def test_pieces_of_a_mask_become_one_line_that_covers_them() -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[5:20, 5:30] = mask[30:50, 40:70] = mask[2:8, 60:75] = 1
    pieces = outlines.of(mask, 100, 200)
    assert len(pieces) == 3
    line = outlines.joined(pieces)
    import cv2

    filled = np.zeros_like(mask)
    cv2.fillPoly(filled, [(line - (100, 200)).astype(np.int32)], 1)
    assert (filled & mask).sum() == mask.sum()
    assert (filled & ~mask & 1).sum() <= 60, "the lines between the pieces"
    dots = [np.array([(x, y), (x + 1, y)], np.float32) for y in range(0, 90, 3) for x in range(0, 90, 3)]
    line = outlines.joined(dots)
    assert len(line) <= 4 * len(dots), "each piece is entered and left once"
    assert set(map(tuple, line.tolist())) == {tuple(point) for dot in dots for point in dot.tolist()}
    assert outlines.joined([]).shape == (0, 2)
    assert outlines.of(np.zeros((0, 0), np.uint8), 0, 0) == []


def candidates(mask: np.ndarray) -> Candidates:
    """One box around everything whose mask is above 0 where `mask` is."""
    prototypes = np.where(mask, 1, -1).astype(np.float32)[None]
    h, w = (4 * side for side in mask.shape)
    one = np.array([[0, 0, w, h]], np.float32)
    return Candidates(one, np.ones(1, np.float32), np.zeros(1, np.int64), np.ones((1, 1), np.float32), prototypes)


def test_masks_at_the_photos_size_follow_it_and_have_a_limit() -> None:
    mask = np.zeros((40, 40), bool)
    mask[10:30, 5:35] = True
    found = candidates(mask)
    letterbox = Letterbox(1600, 1600, 0.1, 0.1, 0, 0)
    segment = TASKS["segment"]
    fine, coarse = (
        segment.final(found, letterbox, PredictOptions(retina_masks=native)).outlines[0][0]  # type: ignore[attr-defined]
        for native in (True, False)
    )
    for line in (fine, coarse):
        np.testing.assert_allclose(line.min(0), (200, 400), atol=12)
        np.testing.assert_allclose(line.max(0), (1400, 1200), atol=12)
    assert segment.final(found, letterbox, PredictOptions(masks=False)).outlines is None  # type: ignore[attr-defined]
    many = Detections(np.array([[0, 0, 1e4, 1e4]] * 2, np.float32), found.confidence, found.class_id, found.extra)
    with pytest.raises(ImageTooComplex, match="200 million pixels"):
        next(iter(masks.native(found, many, found.prototypes, letterbox)))  # type: ignore[arg-type]


def test_prototypes_travel_only_where_a_mask_is_wanted() -> None:
    head = np.array([[20, 20, 30, 30, 0.9, 0, 1]], np.float32).T
    output = head, np.ones((1, 40, 40), np.float32)
    segment = TASKS["segment"]
    assert segment.candidates(output, 0.5, PredictOptions()).prototypes is not None  # type: ignore[attr-defined]
    assert segment.candidates(output, 0.5, PredictOptions(masks=False)).prototypes is None  # type: ignore[attr-defined]
    assert segment.candidates(output, 0.95, PredictOptions()).prototypes is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_where_nothing_is_found_every_form_of_the_answer_is_empty(task: Task) -> None:
    extra = {"segment": 32, "pose": 51, "obb": 1}.get(task.name, 0)
    head = np.zeros(3, np.float32) if task.name == "classify" else np.zeros((6 + extra, 84), np.float32)
    output = (head, np.zeros((32, 40, 40), np.float32)) if task.name == "segment" else (head,)
    found = recognise(task, output, Letterbox(160, 160, 1, 1, 0, 0), 0.5)
    assert len(found) == len(task.counted(found)) == 0
    assert results.of(found, task, ()) == []
    assert not task.in_coco or task.coco([], 2) == []
    columns = task.columns([])
    assert [(data, len(shape)) for data, shape in columns] == [([], len(tensor["shape"])) for tensor in task.tensors]


def test_an_empty_mask_keeps_its_box() -> None:
    found = candidates(np.zeros((40, 40), bool))
    segment = TASKS["segment"]
    done = segment.final(found, Letterbox(160, 160, 1, 1, 0, 0), PredictOptions())
    (part,) = segment.parts(done, Units())
    assert part["segments"] == {"x": [], "y": []}
    (line,) = segment.coco([part], 2)[0]["segmentation"]
    assert len(line) == 6


def test_the_middle_square_is_that_of_the_trainings_transforms() -> None:
    """Torchvision's Resize(8) and CenterCrop(8), whose sizes and corners are written out here."""
    photo = np.arange(20 * 33 * 3, dtype=np.uint32).reshape(20, 33, 3).astype(np.uint8)
    square, letterbox = image.middle_square(photo, 8, (20, 33))
    assert square.shape == (8, 8, 3)
    assert (letterbox.width, letterbox.height, letterbox.left, letterbox.top) == (
        33,
        20,
        -2,
        0,
    )  # 13 wide, (13 - 8) / 2
    assert image.middle_square(photo[:, :20], 8, (20, 20))[1].left == 0
