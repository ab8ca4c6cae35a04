"""The precision check: whether a network finds on a GPU, in float16, what it finds in float32 on the CPU.

A network may overflow in float16, and a new kind of GPU or another version of cuDNN computes differently.
Must not know Ray or torch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from serve_app.errors import Imprecise
from serve_app.weights.golden_set import SURE, Expected, found

if TYPE_CHECKING:
    from serve_app.vision.engines.engine import Engine
    from serve_app.vision.tasks.task import Task

logger = logging.getLogger("ray.serve")
# YOLOv8n in float16 on an H200: 0.004 and 0.948 at most, over 439 objects of 128 photos; in bfloat16 0.082 and 0.72.
SCORE, IOU = 0.05, 0.9  # largest difference of a confidence, least IoU of two boxes
STRAY = 0.1  # most objects that only one of both finds, as a fraction of all: NMS may decide a close case differently


def check(photos: Sequence[bytes], engine: Engine, exact: Engine, size: int) -> None:
    """Raises Imprecise when the objects with a confidence of at least 0.5 differ too much on these encoded photos.

    `engine` is the network to check, `exact` the same one in float32.
    """
    stray: list[Expected] = []
    objects = 0
    for photo in photos:
        got, wanted = (found(one, photo, size, SURE - SCORE) for one in (engine, exact))
        for some, others in ((wanted, got), (got, wanted)):
            sure = [o for o in some if o.score >= SURE]
            objects += len(sure)
            stray += [o for o in sure if not any(same(engine.task, o, other) for other in others)]
    if not objects:
        logger.warning("the precision check has found no objects to compare: publish the weights with a golden set")
    if len(stray) > STRAY * objects:
        one = stray[0]
        raise Imprecise(
            f"on the GPU {len(stray)} of {objects} objects differ from float32 on the CPU, the first a {one.name} of "
            f"confidence {one.score}: set `precision: float32`"
        )


def same(task: Task, one: Expected, other: Expected) -> bool:
    """Whether these are one object, within SCORE and IOU."""
    close = abs(one.score - other.score) <= SCORE and task.overlap(one.part, other.part) >= IOU
    return one.name == other.name and close
