"""An application whose network is a sleep: it checks the planner with more replicas than the machine has cores for.

Use it as `import_path: loadtests.capacity.fixed_time_engine:build`. Everything else is as shipped: HAProxy, ingress,
decoding, batching, postprocessing, Serve's autoscaler. The engine runs one batch at a time; its service time is BASE_S
plus EACH_S for each photo.
"""

# No `from __future__ import annotations`: Serve reads the type of `args` at run time and ignores a string.
import threading
import time
from collections.abc import Sequence

from ray.serve import Application

from loadtests.benchmarks import overhead
from serve_app import app
from serve_app.settings import AppSettings
from serve_app.vision.engines.engine import Images
from serve_app.vision.tasks.task import Output

BASE_S, EACH_S = 0.08, 0.04


class FixedTimeEngine(overhead.InstantEngine):
    """Returns one object on every photo, after a fixed service time."""

    def __init__(self, class_names: tuple[str, ...], size: int) -> None:
        super().__init__(class_names, size)
        self._one_batch = threading.Lock()

    def __call__(self, images: Images) -> Sequence[Output]:
        """See `Engine`."""
        with self._one_batch:
            time.sleep(BASE_S + EACH_S * len(images))
        return super().__call__(images)


class SingleProcessIngress(overhead.SingleProcessIngress):
    """The shipped SingleProcessIngress with this engine."""

    instead = FixedTimeEngine


def build(args: AppSettings) -> Application:
    """`app.build` with this deployment."""
    app.SingleProcessIngress = SingleProcessIngress  # type: ignore[attr-defined]
    return app.build(args)
