"""Every metric of ours: name, unit, labels, buckets. Serve already counts requests and queues.

What Ray makes of them: `_sum` of a histogram is made up from the middles of its buckets (batches of 1 have a mean of
0.5), so dashboards use buckets and counts, and what must be exact is a counter; and a gauge that is not set again is
gone after the next report, 10 s later.
"""

from __future__ import annotations

from typing import Any

from ray.serve.metrics import Counter, Gauge, Histogram

STAGE_BUCKETS_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30]


def stage_seconds() -> Histogram:
    """Time in one stage; for `detect` the forward pass of the whole batch."""
    return Histogram("recognition_stage_seconds", "Time in one stage", STAGE_BUCKETS_S, ("stage",))


def engine_seconds_total() -> Counter:
    """Time that batches spent in the engine, exactly; two at a time count twice."""
    return Counter("recognition_engine_seconds_total", "Time of batches in the engine")


def queue_seconds() -> Histogram:
    """Wait of one image for its batch to start."""
    return Histogram("recognition_queue_seconds", "Wait for the batch to start", STAGE_BUCKETS_S)


def images_total() -> Counter:
    """Images by outcome: `ok`, `cancelled`, or the `code` of the error."""
    return Counter("recognition_images_total", "Images by outcome", ("code",))


def detections_total() -> Counter:
    """Boxes by the name of their class, as they were answered."""
    return Counter("recognition_detections_total", "Boxes answered, by class", ("class_name",))


def retries_total() -> Counter:
    """Calls of a stage tried again, because its replica died with them or none was there."""
    return Counter("recognition_retries_total", "Calls of a stage tried again")


def settings_refused_total() -> Counter:
    """Changes of `user_config` that were refused; the old values stay in force."""
    return Counter("recognition_settings_refused_total", "Refused changes of user_config")


def swaps_total() -> Counter:
    """Changes of weights by outcome: `live`, `back` to those before, or the `reason` of a WeightsError."""
    return Counter("recognition_weights_swaps_total", "Changes of weights by outcome", ("outcome",))


def weights_live() -> Gauge:
    """1 for the weights that a replica serves; set again with each health check."""
    tags: Any = ("name", "version", "sha256")  # Ray's type says one
    return Gauge("recognition_weights_live", "1 for the weights that are served", tags)


def load_seconds_total() -> Counter:
    """Time of each step from an address to weights that serve: a cold start, or a swap. Over `live` swaps: a mean."""
    return Counter("recognition_weights_load_seconds_total", "Time of each step until weights serve", ("step",))
