"""What was found, in the shape of an answer: `class`, `name`, `confidence`, and the part of its task."""

from __future__ import annotations

from typing import Any

from serve_app.vision.tasks.task import PIXELS, Found, Task, Units

Result = dict[str, Any]


def of(found: Found, task: Task, names: tuple[str, ...], units: Units = PIXELS) -> list[Result]:
    """One result for each object, best first. Rounds confidence to 0.00001."""
    scores = found.confidence.astype(float).round(5).tolist()
    rows = zip(found.class_id.tolist(), scores, task.parts(found, units), strict=True)
    return [{"class": k, "name": names[k], "confidence": score} | part for k, score, part in rows]
