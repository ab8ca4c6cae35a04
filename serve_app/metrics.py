"""The service's own metrics: names, units, labels and buckets. Serve already counts requests and queues.

Ray computes `_sum` of a histogram from the middles of its buckets (batches of 1 have a mean of 0.5). So dashboards use
buckets and counts, and a value that must be exact is a counter. Ray drops a gauge that is not set again before its next
report, 10 s later. Ray accepts only ASCII in labels, see `escaped`.

A metric never fails what it measures: an error is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.serve import metrics

logger = logging.getLogger("ray.serve")
Tags = dict[str, str] | None
STAGE_BUCKETS_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30]


def escaped(tags: Tags) -> dict[str, str]:
    """The labels with all but printable ASCII escaped as in Python; users choose the names of classes and weights."""
    return {k: v.encode("unicode_escape").decode() for k, v in (tags or {}).items()}


@contextmanager
def harmless() -> Iterator[None]:
    """Logs an error instead of raising it."""
    try:
        yield
    except Exception:
        logger.exception("a metric was not recorded")


class Counter(metrics.Counter):
    """Serve's counter, harmless and with any label."""

    def inc(self, value: float = 1.0, tags: Tags = None) -> None:
        """Adds `value`, which is above 0."""
        with harmless():
            super().inc(value, escaped(tags))


class Gauge(metrics.Gauge):
    """Serve's gauge, harmless and with any label."""

    def set(self, value: float, tags: Tags = None) -> None:  # type: ignore[override] # Ray's two types differ
        """Sets the value."""
        with harmless():
            super().set(value, escaped(tags))


class Histogram(metrics.Histogram):
    """Serve's histogram, harmless and with any label."""

    def observe(self, value: float, tags: Tags = None) -> None:
        """Counts `value` in its bucket."""
        with harmless():
            super().observe(value, escaped(tags))


def stage_seconds() -> Histogram:
    """Seconds in one stage. For `detect`: the whole batch in the engine."""
    return Histogram("recognition_stage_seconds", "Time in one stage", STAGE_BUCKETS_S, ("stage",))


def engine_seconds_total() -> Counter:
    """Exact seconds that batches spent in the engine. Two batches at a time count twice."""
    return Counter("recognition_engine_seconds_total", "Time of batches in the engine")


def queue_seconds() -> Histogram:
    """Seconds that one image waited for its batch to start."""
    return Histogram("recognition_queue_seconds", "Wait for the batch to start", STAGE_BUCKETS_S)


def images_total() -> Counter:
    """Images by outcome: `ok`, `cancelled`, or the `code` of the error."""
    return Counter("recognition_images_total", "Images by outcome", ("code",))


def detections_total() -> Counter:
    """Detections in responses, by class name."""
    return Counter("recognition_detections_total", "Boxes answered, by class", ("class_name",))


def retries_total() -> Counter:
    """Calls of a stage that were retried, because its replica died or none was running."""
    return Counter("recognition_retries_total", "Calls of a stage tried again")


def settings_refused_total() -> Counter:
    """Changes of `user_config` that were refused; the previous values stay active."""
    return Counter("recognition_settings_refused_total", "Refused changes of user_config")


def swaps_total() -> Counter:
    """Swaps by outcome: `live`, `back` (to the previous weights), or the `reason` of a WeightsError."""
    return Counter("recognition_weights_swaps_total", "Changes of weights by outcome", ("outcome",))


def weights_live() -> Gauge:
    """1 for the weights that a replica serves. Each health check sets it again.

    `int8_refused` says why they do not run in int8 where it would be the fastest; it is empty otherwise.
    """
    tags: Any = (
        "name",
        "version",
        "sha256",
        "precision",
        "int8_refused",
    )  # Any, because Ray's type allows only one tag
    return Gauge("recognition_weights_live", "1 for the weights that are served", tags)


def load_seconds_total() -> Counter:
    """Seconds of each step from an address to live weights (start or swap). Divide by `live` swaps for a mean."""
    return Counter("recognition_weights_load_seconds_total", "Time of each step until weights serve", ("step",))
