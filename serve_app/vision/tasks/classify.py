"""Classification: the classes of the whole photo, best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve_app.settings import PredictOptions
from serve_app.vision.image import Letterbox
from serve_app.vision.tasks.task import ALWAYS, PIXELS, Check, Floats, Found, Ints, Output, Part, Units


@dataclass(frozen=True, slots=True)
class Classes:
    """N classes, best first: confidence float32 (N,) in 0..1, class_id int64 (N,)."""

    confidence: Floats
    class_id: Ints

    def __len__(self) -> int:
        return len(self.confidence)


class Classify:
    """Output: the probability of each class, float32 (C,)."""

    name = "classify"
    network = "ClassificationModel"
    image_size = 224
    crops = True
    least = 0.0  # the best `topk`, however sure
    options = ALWAYS | {"topk"}
    in_coco = False
    tensors: Sequence[dict[str, Any]] = ()

    def candidates(self, output: Output, least: float | Floats, options: PredictOptions) -> Classes:
        """See `Task`."""
        (scores,) = output
        best_first = np.argsort(-scores, kind="stable")
        chosen = best_first[(scores >= least)[best_first]][: options.topk]
        return Classes(scores[chosen], chosen.astype(np.int64))

    def final(self, candidates: Classes, letterbox: Letterbox, options: PredictOptions) -> Classes:
        """See `Task`."""
        return candidates

    def merged(
        self, candidates: Sequence[Classes], letterboxes: Sequence[Letterbox], options: PredictOptions, in_time: Check
    ) -> Classes:
        """There are no tiles: a class belongs to the whole photo."""
        raise NotImplementedError

    def parts(self, found: Classes, units: Units = PIXELS) -> list[Part]:
        """Nothing: a class belongs to the whole photo."""
        return [{} for _ in range(len(found))]

    def coco(self, parts: Sequence[Part], digits: int) -> list[dict[str, Any]]:
        """COCO has no such results, see `in_coco`."""
        raise NotImplementedError

    def columns(self, parts: Sequence[Part]) -> list[tuple[list[Any], list[int]]]:
        """See `Task`."""
        return []

    def overlap(self, one: Part, other: Part) -> float:
        """All are of the whole photo."""
        return 1.0

    def counted(self, found: Found) -> Ints:
        """The best one."""
        return found.class_id[:1]

    def moved(self, output: Output, left: int, top: int, shape: tuple[int, int]) -> Output:
        """See `Task`."""
        return output
