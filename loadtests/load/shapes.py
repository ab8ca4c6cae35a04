"""Load shapes: how a load rises and falls, in fractions of its peak. For Locust and for the planner's traces."""

from __future__ import annotations

import math
from typing import NamedTuple


class Stage(NamedTuple):
    """A time in seconds at one level, a fraction of the peak."""

    seconds: float
    level: float


# One minute stands for an hour. The minimum is at 4:00 and the maximum at 16:00, when people are awake.
DAILY = [Stage(60, 0.6 - 0.4 * math.cos((hour - 4) / 24 * 2 * math.pi)) for hour in range(24)]
SHAPES = {
    "smoke": [Stage(20, 0.4)],
    "steady": [Stage(30, 0.4), Stage(300, 0.8)],
    "burst": [Stage(60, 0.3), Stage(60, 1.0), Stage(120, 0.3)],
    "daily": DAILY,
    "soak": [Stage(60, 0.4), Stage(4 * 3600, 0.7)],
}


def level(shape: str, seconds: float) -> float | None:
    """The level after so many seconds of the shape, as a fraction of the peak; None after its end."""
    for stage in SHAPES[shape]:
        if seconds < stage.seconds:
            return stage.level
        seconds -= stage.seconds
    return None
