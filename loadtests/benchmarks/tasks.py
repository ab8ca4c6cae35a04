"""How far an engine and a task's own code find what Ultralytics' code finds, on the same network inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtests.benchmarks.ultralytics_results import Own, results
from serve_app.settings import PredictOptions
from serve_app.vision import boxes
from serve_app.vision.boxes import overlap
from serve_app.vision.engines.engine import Engine
from serve_app.vision.image import Letterbox
from serve_app.vision.tasks import masks, outlines
from serve_app.vision.tasks import results as our_results
from serve_app.vision.tasks.masks import Mask
from serve_app.vision.tasks.segment import Candidates
from serve_app.vision.tasks.task import Output, Task, Units, recognise

Input = tuple[NDArray[np.uint8], Letterbox]
LARGE = 100  # pixels of a mask from which its IoU counts: of the specks of random networks, one pixel is a third
SMALL = 2.0  # pixels; random networks have boxes with smaller sides, also below 0, whose IoU means nothing
CERTAIN = 0.9999  # a confidence; random networks reach it on photos unlike those that gave them their statistics
ALIKE = 0.02  # most difference of the scores of one object


@dataclass
class Same:
    """What was compared: objects of Ultralytics, those not found, and the worst of each measure.

    `box` and `mask` are IoU, `points` pixels of the photo, `angle` degrees, `score` a difference of confidences.
    """

    inputs: int = 0
    objects: int = 0
    missed: int = 0
    extra: int = 0
    box: list[float] = field(default_factory=lambda: [1.0])
    mask: list[float] = field(default_factory=lambda: [1.0])
    points: list[float] = field(default_factory=lambda: [0.0])
    angle: list[float] = field(default_factory=lambda: [0.0])
    score: list[float] = field(default_factory=lambda: [0.0])


def compare(
    engine: Engine,
    own: Any,  # noqa: ANN401 - Ultralytics has no types
    inputs: Sequence[Input],
    conf: float,
    *,
    native: bool = False,
    most: int = 1000,
) -> Same:
    """Compares all objects of a confidence of at least `conf`, on the first `most` inputs that are fit for it.

    An input is not when the network is certain of several objects: then the last digit decides what NMS keeps.
    """
    same, task = Same(), engine.task
    options = PredictOptions(retina_masks=native, topk=1000)
    for image, letterbox in inputs:
        if same.inputs == most:
            break
        theirs = results(own, task.name, image, letterbox, conf, native=native)
        if (theirs.confidence >= CERTAIN).sum() > 1:
            continue
        same.inputs += 1
        (output,) = engine([image])
        found = recognise(task, output, letterbox, conf, options)
        left = our_results.of(found, task, tuple(map(str, range(1000))), Units(digits=6))
        if task.name == "segment" and left:
            for one, mask in zip(left, masks_of(task, output, letterbox, conf, native=native), strict=True):
                one["mask"] = mask
        same.objects += len(theirs.confidence)
        for i in range(len(theirs.confidence)):
            match = [r for r in left if r["class"] == theirs.class_id[i]]
            match = [r for r in match if abs(r["confidence"] - theirs.confidence[i]) <= ALIKE]
            best = max(match, key=lambda r: (round(near(r, theirs, i), 3), -apart(r, theirs, i)), default=None)
            if small(theirs.shape[i]):
                continue
            if best is None or near(best, theirs, i) < 0.5:
                same.missed += 1
                continue
            left.remove(best)
            measure(same, best, theirs, i)
        same.extra += len(left)
    return same


def small(shape: NDArray[np.float32]) -> bool:
    """Whether a box has a side below SMALL."""
    sides = np.linalg.norm(shape[:2] - shape[1:3], axis=1) if shape.ndim == 2 else shape[2:] - shape[:2]
    return bool(len(sides) and min(sides) < SMALL)


def near(ours: dict[str, Any], theirs: Own, i: int) -> float:
    """The IoU of two boxes, of turned ones as polygons; 1 for classes of the whole photo."""
    if "box" not in ours:
        return 1.0
    box = tuple(ours["box"].values())
    if len(box) == 4:
        return overlap(box, tuple(theirs.shape[i].tolist()))
    x, y = theirs.shape[i].T.tolist()
    return outlines.overlap({"x": box[::2], "y": box[1::2]}, {"x": x, "y": y})


def apart(ours: dict[str, Any], theirs: Own, i: int) -> float:
    """Decides between boxes that are the same once they are clipped: how far their points are apart, or scores."""
    if theirs.points is None:
        return abs(float(ours["confidence"] - theirs.confidence[i]))
    xy = np.array([ours["keypoints"]["x"], ours["keypoints"]["y"]]).T
    return float(np.abs(xy - theirs.points[i, :, :2]).max())


def measure(same: Same, ours: dict[str, Any], theirs: Own, i: int) -> None:
    """Adds the measures of one object."""
    same.score.append(abs(ours["confidence"] - float(theirs.confidence[i])))
    same.box.append(near(ours, theirs, i))
    if theirs.shape.ndim == 3:
        corners = np.array(list(ours["box"].values())).reshape(4, 2)
        sides = [c[0] - c[3] for c in (corners, theirs.shape[i])]  # along the width
        turn = np.degrees(np.arctan2(sides[0][1], sides[0][0]) - np.arctan2(sides[1][1], sides[1][0]))
        same.angle.append(abs(float((turn + 90) % 180 - 90)))
    if theirs.points is not None:
        same.points.append(apart(ours, theirs, i))
    if theirs.masks is not None and theirs.masks[i].sum() >= LARGE:
        same.mask.append(mask_overlap(ours["mask"], theirs.masks[i]))


def masks_of(task: Task, output: Output, letterbox: Letterbox, conf: float, *, native: bool) -> Iterator[Mask]:
    """The masks before they become outlines, best first."""
    candidates = task.candidates(output, conf, PredictOptions())
    assert isinstance(candidates, Candidates)
    assert candidates.prototypes is not None
    kept = boxes.non_max_suppression(candidates, 0.7, 300)
    if native:
        return masks.native(kept, boxes.to_photo(kept, letterbox), candidates.prototypes, letterbox)
    return masks.of_boxes(kept, candidates.prototypes)


def mask_overlap(ours: Mask, theirs: NDArray[np.uint8]) -> float:
    """The IoU of a mask with one of the whole image."""
    mask, (x, y) = ours
    placed = np.zeros_like(theirs)
    placed[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return float((placed & theirs).sum() / (placed | theirs).sum())
