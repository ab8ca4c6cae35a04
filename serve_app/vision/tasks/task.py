"""Defines what a task is: from a network's output to the objects of a photo, and to the part of an answer.

Detector: `candidates`. Postprocessor: `final`. Ingress, golden sets, drawing: `parts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serve_app.settings import PredictOptions
from serve_app.vision.image import Letterbox

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Output = tuple[Floats, ...]  # what a network gives for one image; its task says what they are
Check = Callable[[], None]  # raises an error when there is no time left
Part = dict[str, dict[str, Any]]  # what an answer says of one object besides class and confidence, such as its box
# Options that every task takes, and those of every task with boxes.
ALWAYS = frozenset({"conf", "classes", "format"})
OF_BOXES = ALWAYS | {"iou", "max_det", "agnostic_nms", "normalize", "decimals", "tile", "overlap", "tile_merge"}


class Found(Protocol):
    """N objects, best first: confidence float32 (N,) in 0..1, class_id int64 (N,), and what their task adds."""

    @property
    def confidence(self) -> Floats: ...  # noqa: D102

    @property
    def class_id(self) -> Ints: ...  # noqa: D102

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Units:
    """How an answer writes coordinates: divided by `width` and `height`, then rounded to `digits` decimals."""

    width: float = 1
    height: float = 1
    digits: int = 2

    def write(self, xy: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Pixels (…, 2) as the answer has them. In float64: a float32 of 31.04 would print as 31.040000915527344."""
        return (xy.astype(float) / (self.width, self.height)).round(self.digits)


PIXELS = Units()


class Task(Protocol):
    """One task. It has no state: whatever depends on the network is in the network's output."""

    name: str
    network: str  # Ultralytics' class of its networks
    image_size: int  # side of the network input in pixels, for weights that do not say it
    crops: bool  # whether the network sees the middle square of a photo instead of the whole, letterboxed
    least: float  # the confidence that an object must have unless the request says it
    options: frozenset[str]  # the fields of PredictOptions that it takes
    in_coco: bool  # whether COCO has a format for its results
    tensors: Sequence[dict[str, Any]]  # name, datatype and shape of what it adds to an Open Inference answer

    def candidates(self, output: Output, least: float | Floats, options: PredictOptions) -> Found:
        """What the network may have found, in pixels of its input.

        `least` is the least confidence, or float32 (C,) with one for each class id.
        """
        ...

    def final(self, candidates: Any, letterbox: Letterbox, options: PredictOptions) -> Found:  # noqa: ANN401 - its own Found
        """What it has found, in pixels of the photo."""
        ...

    def merged(
        self, candidates: Sequence[Any], letterboxes: Sequence[Letterbox], options: PredictOptions, in_time: Check
    ) -> Found:
        """What it has found in the network inputs of one photo, first in the whole and then in its tiles.

        Raises ImageTooComplex for too many boxes, and what `in_time` raises, which it calls again and again.
        """
        ...

    def parts(self, found: Any, units: Units = PIXELS) -> list[Part]:  # noqa: ANN401 - its own Found
        """The part of each object, in the shapes of the Ultralytics Platform."""
        ...

    def coco(self, parts: Sequence[Part], digits: int) -> list[dict[str, Any]]:
        """The fields that a COCO result has besides ids and score."""
        ...

    def columns(self, parts: Sequence[Part]) -> list[tuple[list[Any], list[int]]]:
        """Data and shape of each of `tensors`."""
        ...

    def overlap(self, one: Part, other: Part) -> float:
        """How far two objects of one class are the same, from 0 to 1."""
        ...

    def counted(self, found: Found) -> Ints:
        """The class ids that metrics and logs count for a photo."""
        ...

    def moved(self, output: Output, left: int, top: int, shape: tuple[int, int]) -> Output:
        """The output of a square, as that of the image of `shape` (height, width) that lies in it at left, top.

        May change the arrays in place.
        """
        ...


def recognise(
    task: Task, output: Output, letterbox: Letterbox, conf: float, options: PredictOptions | None = None
) -> Found:
    """The objects of one image in pixels of the photo, as the stages find them."""
    options = options or PredictOptions()
    return task.final(task.candidates(output, conf, options), letterbox, options)
