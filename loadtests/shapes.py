"""How a load rises and falls, as parts of its peak: for Locust's tests and for the planner's traces."""

from __future__ import annotations

import math
from typing import NamedTuple


class Stage(NamedTuple):
    """So many seconds at a part of the peak."""

    seconds: float
    level: float


# An hour takes a minute. Least at four in the morning, most at four in the afternoon, as people who are awake make it.
DAILY = [Stage(60, 0.6 - 0.4 * math.cos((hour - 4) / 24 * 2 * math.pi)) for hour in range(24)]
SHAPES = {
    "smoke": [Stage(20, 0.4)],
    "steady": [Stage(30, 0.4), Stage(300, 0.8)],
    "burst": [Stage(60, 0.3), Stage(60, 1.0), Stage(120, 0.3)],
    "daily": DAILY,
    "soak": [Stage(60, 0.4), Stage(4 * 3600, 0.7)],
}


def level(shape: str, seconds: float) -> float | None:
    """The part of the peak at a moment of the shape; None when it is over."""
    for stage in SHAPES[shape]:
        if seconds < stage.seconds:
            return stage.level
        seconds -= stage.seconds
    return None
