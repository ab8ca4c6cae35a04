"""Makes a plan from a curve, a peak and an objective.

A simulation finds the number of replicas (queueing.py). An interval is the 5 % to 95 % range of a bootstrap over the
curve's measurements, widened by OFF on both sides.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math

import numpy as np

from loadtests.capacity import trace
from loadtests.capacity.curve import Curve
from loadtests.capacity.plan import Availability, Interval, Plan
from loadtests.capacity.queueing import Outcome, simulate
from loadtests.capacity.station import Station
from serve_app.batch.price import Instance
from serve_app.settings import MAX_PREDICTIONS

ZONES = 3
DRAWS, REQUESTS = 20, 4000  # bootstrap samples; requests of a simulation
IDLE = 0.02  # utilisation at which nothing waits
TRUSTED = 0.8  # highest utilisation at which predictions were compared with measurements, see RESULTS.md
OFF = 0.15  # error of held-out predictions for a real engine, see RESULTS.md; a machine's speed varies as much
METRICS_S = 2  # metrics_interval_s of the shipped overlay
LEAST_LOOK_BACK_S, MOST_LOOK_BACK_S = 10, 60


class Unreachable(ValueError):
    """No number of replicas meets the objective; the message says why."""


def make(
    curve: Curve, peak_rps: float, p95_ms: float, *, availability: Availability = "node",
    instance: Instance | None = None, low_rps: float | None = None, seed: int = 0,
) -> Plan:  # fmt: skip
    """The smallest plan that meets the objective at the upper end of the interval. Raises Unreachable."""
    rng = np.random.default_rng(seed)
    station = curve.station()
    drawn = [curve.station(rng) for _ in range(DRAWS)]
    per_node = curve.replicas
    needed, p95 = smallest(station, drawn, peak_rps, p95_ms=p95_ms, rng=rng, per_node=per_node)
    nodes = spare(math.ceil(needed / per_node), availability)
    # Below the peak the autoscaler removes replicas; at the quietest hour the same loss must be survived.
    quiet = min(low_rps or peak_rps / 4, peak_rps)
    low, _ = smallest(station, drawn, quiet, p95_ms=p95_ms, rng=rng, per_node=per_node)
    fewest_nodes = min(spare(math.ceil(low / per_node), availability), nodes)
    fewest = low if availability == "none" else fewest_nodes * per_node  # every node has replicas: any may be lost
    spread = at(station, nodes * per_node, peak_rps, rng, nodes)
    edge = largest(station, needed, peak_rps, p95_ms=p95_ms, rng=rng, fronts=math.ceil(needed / per_node))
    target = round(peak_rps * float(np.mean(spread.latency)) / (nodes * per_node), 2)
    calm = at(station, fewest, quiet, rng, fewest_nodes)
    return Plan(
        curve, peak_rps, p95_ms, availability, instance, needed, nodes * per_node, fewest, nodes, fewest_nodes, p95,
        interval([one.most for one in drawn], station.most),
        target_ongoing=target,
        look_back_s=steady_look_back(quiet * float(np.mean(calm.latency)), target),
        target_wait_s=round(max(float(np.mean(edge.waited)), 0.01), 3),
        room=int(min(max(math.ceil(2 * station.most * p95_ms / 1000), 2 * curve.max_batch_size), MAX_PREDICTIONS)),
    )  # fmt: skip


def smallest(
    station: Station, drawn: list[Station], rate: float, *, p95_ms: float, rng: np.random.Generator, per_node: int
) -> tuple[int, Interval]:
    """The fewest replicas that meet the objective, and their p95 in ms. Raises Unreachable."""
    idle = at(station, 1, IDLE * station.most, rng).percentile() * 1000
    if idle > p95_ms:
        raise Unreachable(f"an idle replica has a p95 of {idle:.0f} ms: no number of replicas meets {p95_ms:.0f} ms")

    @functools.cache
    def p95(number: int) -> Interval:
        fronts = math.ceil(number / per_node)
        if (once := at(station, number, rate, rng, fronts).percentile() * 1000) > p95_ms:
            return Interval(once, once, once)  # missed already: no need for DRAWS samples
        return predicted(drawn, number, rate, rng, fronts)

    def met(number: int) -> bool:
        return p95(number).high <= p95_ms

    fewest, span = max(1, math.ceil(rate / (TRUSTED * station.most))), 1
    while not met(most := fewest + span - 1):
        if rate / most < IDLE * station.most:
            raise Unreachable(f"{most} replicas, idle nearly all the time, still miss {p95_ms:.0f} ms")
        span *= 2
    numbers = range(fewest + span // 2, fewest + span)  # the last one meets the objective, those below the range do not
    number = numbers[bisect.bisect_left(numbers[:-1], True, key=met)]
    return number, p95(number)


def predicted(drawn: list[Station], number: int, rate: float, rng: np.random.Generator, fronts: int) -> Interval:
    """The p95 in ms with its interval."""
    each = [at(one, number, rate, rng, fronts).percentile() * 1000 for one in drawn]
    return interval(each, float(np.median(each)))


def largest(
    station: Station, number: int, rate: float, *, p95_ms: float, rng: np.random.Generator, fronts: int
) -> Outcome:
    """The outcome at the largest arrival rate, `rate` or more, at which these replicas meet the objective."""
    low, high, found = rate, number * station.most, at(station, number, rate, rng, fronts)
    for _ in range(8):
        middle = (low + high) / 2
        tried = at(station, number, middle, rng, fronts)
        if tried.percentile() * 1000 <= p95_ms:
            low, found = middle, tried
        else:
            high = middle
    return found


def interval(values: list[float], middle: float) -> Interval:
    """The interval around an estimate: the bootstrap covers chance, OFF covers model and machine."""
    low, high = np.percentile(values, [5, 95]).tolist()
    return Interval(min(low, middle) * (1 - OFF), middle, max(high, middle) * (1 + OFF))


def at(station: Station, number: int, rate: float, rng: np.random.Generator, fronts: int = 1) -> Outcome:
    """Simulates REQUESTS Poisson arrivals at an arrival rate."""
    return simulate(station, number, trace.steady(rate, REQUESTS / rate).arrivals(rng), rng, fronts)


def steady_look_back(ongoing: float, target: float) -> float:
    """Seconds of look-back after which three sigma of the mean of `ongoing` requests are below one replica's target.

    A replica records its requests every METRICS_S; the number is about Poisson. With a shorter look-back no replica
    is ever removed: one peak of the mean within `downscale_delay_s` keeps it.
    """
    records = math.ceil(9 * ongoing / target**2)
    return float(min(max(records * METRICS_S, LEAST_LOOK_BACK_S), MOST_LOOK_BACK_S))


def spare(nodes: int, availability: Availability) -> int:
    """How many nodes are needed if one, or those of one of ZONES zones, may be lost and `nodes` must remain."""
    if availability == "node":
        return nodes + 1
    if availability == "zone":
        return next(n for n in itertools.count(nodes + 1) if n - math.ceil(n / ZONES) >= nodes)
    return nodes
