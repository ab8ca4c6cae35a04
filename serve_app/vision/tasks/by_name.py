"""All tasks, by name."""

from __future__ import annotations

from serve_app.vision.tasks.classify import Classify
from serve_app.vision.tasks.detect import Detect
from serve_app.vision.tasks.obb import Obb
from serve_app.vision.tasks.pose import Pose
from serve_app.vision.tasks.segment import Segment
from serve_app.vision.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (Detect(), Segment(), Pose(), Obb(), Classify())}
