"""An application whose network is a sleep, so that replicas add up however few cores there are: to check the planner.

All else is what ships: HAProxy, ingress, decoding, batching, postprocessing, Serve's autoscaler. The time is that of a
machine that does one batch at a time: BASE_S and EACH_S for each photo in it.
"""

# No `from __future__ import annotations`: Serve reads the type of `args` at run time, and ignores a string.
import threading
import time

import numpy as np
from numpy.typing import NDArray
from ray.serve import Application

from loadtests import plane
from serve_app import app
from serve_app.settings import AppSettings

BASE_S, EACH_S = 0.08, 0.04


class Clockwork(plane.Constant):
    """A sure object on every photo, after its time."""

    def __init__(self, class_names: tuple[str, ...], size: int) -> None:
        super().__init__(class_names, size)
        self._machine = threading.Lock()

    def __call__(self, squares_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See Model."""
        with self._machine:
            time.sleep(BASE_S + EACH_S * len(squares_nhwc))
        return super().__call__(squares_nhwc)


class Together(plane.Together):
    """The shipped one with this network."""

    instead = Clockwork


def build(args: AppSettings) -> Application:
    """`app.build` with it."""
    app.Together = Together  # type: ignore[attr-defined]
    return app.build(args)
