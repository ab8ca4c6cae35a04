"""Autoscaling: the queueing latency that each replica reports, and the policy that turns it into a number of replicas.

Serve's default policy looks only at the number of requests, but how many are too many depends on the engine, the photos
and the batch size. A target for the queueing latency holds for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from time import monotonic
from typing import Any

from ray.serve.config import AutoscalingContext

WAITED = "waited_s"  # the name of the metric that a replica reports
MAX_STEP = 2.0  # largest growth in one step: the latency of a full queue shows a shortage, but not its size


class QueueingTimer:
    """How long the images of one replica waited, excluding processing time. For one event loop only."""

    def __init__(self) -> None:
        self._under_way: dict[object, float] = {}  # start of each image, in seconds of `monotonic`
        self._waited_s, self._images = 0.0, 0  # sums, not a list: without autoscaling `report` is never called

    @contextmanager
    def waiting(self) -> Iterator[ImageWait]:
        """Measures one image, from entry to exit. The image counts only if the caller sets `counts`."""
        wait = ImageWait()
        self._under_way[wait] = began = monotonic()
        try:
            yield wait
        finally:
            del self._under_way[wait]
            if wait.counts:
                self._waited_s += monotonic() - began - wait.worked_s
                self._images += 1

    def report(self) -> dict[str, float]:
        """The mean wait in seconds since the last report; the oldest image's age if none has finished since."""
        waited_s, images = self._waited_s, self._images
        self._waited_s, self._images = 0.0, 0
        if not images and self._under_way:
            return {WAITED: monotonic() - min(self._under_way.values())}
        return {WAITED: waited_s / max(images, 1)}


class ImageWait:
    """The wait of one image. Set `counts` if it was answered or timed out; a refused image did not wait."""

    def __init__(self) -> None:
        self.counts, self.worked_s = False, 0.0  # worked_s: processing time in seconds


class QueueingLatency:
    """Wants as many replicas as Serve's default policy, and more while the queueing latency is above its target.

    A step is that of Kubernetes' HorizontalPodAutoscaler, replicas x metric / target, and at most MAX_STEP. Above half
    the target no replica is removed. The bounds, delays and factors of `autoscaling_config` apply as usual:
    `policy: {policy_function: serve_app.graph.autoscaling:QueueingLatency, policy_kwargs: {target_s: 0.25}}`.
    Raises ValueError when `target_s` is not positive.
    """

    def __init__(self, target_s: float) -> None:
        if target_s <= 0:
            raise ValueError(f"target_s must be greater than 0, not {target_s}")
        self._target_s = target_s

    def __call__(self, ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """Returns the wanted number of replicas, and an empty state."""
        running = ctx.current_num_replicas
        if not running:  # Serve itself starts the first one
            return ctx.target_num_replicas, {}
        config: Any = ctx.config  # its type allows None, but Serve always sets it here
        by_number = ctx.total_num_requests / config.get_target_ongoing_requests()
        reported = (ctx.aggregated_metrics or {}).get(WAITED)
        waited = fmean(reported.values()) if reported else 0.0
        return max(by_number, running * self._step(waited / self._target_s)), {}

    def _step(self, ratio: float) -> float:
        if ratio > 1:
            return min(ratio, MAX_STEP)
        return 1.0 if ratio > 0.5 else 0.0
