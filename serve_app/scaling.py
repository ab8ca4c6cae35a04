"""How many replicas: what each reports of waiting, and the policy by which Serve's autoscaler decides.

Serve's own policy follows the number of requests alone, and which number is too many depends on engine, photos and
batch. The wait against what it may be holds for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from time import monotonic
from typing import Any

from ray.serve.config import AutoscalingContext

WAITED = "waited_s"  # the name under which a replica reports
MOST = 2.0  # times as many replicas in one step: a full queue's wait says that there are too few, not how many


class Waits:
    """Of one replica: how long its images waited, apart from the work on them; for its event loop only."""

    def __init__(self) -> None:
        self._under_way: dict[object, float] = {}
        self._waited_s, self._images = 0.0, 0  # no list: where nothing scales, nobody ever asks

    @contextmanager
    def waiting(self) -> Iterator[Wait]:
        """Around one image. Counts what was answered, and what ran out of time; a refusal did not wait."""
        wait = Wait()
        self._under_way[wait] = began = monotonic()
        try:
            yield wait
        finally:
            del self._under_way[wait]
            if wait.counts:
                self._waited_s += monotonic() - began - wait.worked_s
                self._images += 1

    def report(self) -> dict[str, float]:
        """Seconds on average since the last report; while nothing gets done, the age of the oldest image under way."""
        waited_s, images = self._waited_s, self._images
        self._waited_s, self._images = 0.0, 0
        if not images and self._under_way:
            return {WAITED: monotonic() - min(self._under_way.values())}
        return {WAITED: waited_s / max(images, 1)}


class Wait:
    """One image's; `counts` is set once it has an outcome that says something of the queue."""

    def __init__(self) -> None:
        self.counts, self.worked_s = False, 0.0


class QueueingLatency:
    """As many replicas as Serve's own policy wants, and more while the queueing latency is above its target.

    The step is that of Kubernetes' horizontal pod autoscaler, replicas x metric / target, at most MOST at a time; above
    half the target nothing is taken away. Bounds, delays and factors of `autoscaling_config` apply as they do to
    Serve's own: `policy: {policy_function: serve_app.scaling:QueueingLatency, policy_kwargs: {target_s: 0.25}}`.
    """

    def __init__(self, target_s: float) -> None:
        if target_s <= 0:
            raise ValueError(f"target_s: {target_s} is not above 0")
        self._target_s = target_s

    def __call__(self, ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The replicas that are wanted, and no state."""
        running = ctx.current_num_replicas
        if not running:  # Serve itself starts the first
            return ctx.target_num_replicas, {}
        config: Any = ctx.config  # never None here, whatever its type says
        by_number = ctx.total_num_requests / config.get_target_ongoing_requests()
        reported = (ctx.aggregated_metrics or {}).get(WAITED)
        waited = fmean(reported.values()) if reported else 0.0
        return max(by_number, running * self._step(waited / self._target_s)), {}

    def _step(self, ratio: float) -> float:
        if ratio > 1:
            return min(ratio, MOST)
        return 1.0 if ratio > 0.5 else 0.0
