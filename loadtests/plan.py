"""From a curve, a peak and an objective to replicas, nodes, settings and cost; and those as patches.

How many suffice is simulated (queueing.py). The interval is a bootstrap over the curve's measurements, 5 % to 95 %, and
OFF more each way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml

from loadtests import trace
from loadtests.curve import Curve
from loadtests.queueing import Outcome, Station, simulate
from serve_app import manifests
from serve_app.configuration import merged
from serve_app.settings import MAX_PREDICTIONS

Availability = Literal["none", "node", "zone"]
HOURS = 730  # a month
ZONES = 3
DRAWS, REQUESTS = 20, 4000  # of the bootstrap; simulated at a time
MOST_REPLICAS = 2000
OFF = 0.15  # of a real engine's predictions held out, see RESULTS.md; a machine is that much slower at other times
METRICS_S = 2  # metrics_interval_s of the shipped overlay
LEAST_LOOK_BACK_S, MOST_LOOK_BACK_S = 10, 60
BESIDE = 96  # requests in a replica that are no photos in work: probes, and what is about to be refused
PRODUCTION = manifests.OVERLAYS / "production"


class Unreachable(ValueError):
    """No number of replicas meets the objective; the message says why."""


class Interval(NamedTuple):
    """An estimate, and between what it lies."""

    low: float
    middle: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.middle:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


class Instance(NamedTuple):
    """A node: its type, and its price an hour."""

    name: str
    hourly: float

    @classmethod
    def parse(cls, text: str) -> Instance:
        """Of `g6.xlarge:0.8/h`. Raises ValueError."""
        name, _, price = text.removesuffix("/h").partition(":")
        if not name or not price:
            raise ValueError(f"{text!r} is not like g6.xlarge:0.8/h")
        return cls(name, float(price))


@dataclass(frozen=True)
class Plan:
    """What to run."""

    curve: Curve
    peak_rps: float
    p95_ms: float
    availability: Availability
    instance: Instance | None
    needed: int  # replicas that carry the peak
    replicas: int  # with those that may be lost
    fewest: int
    nodes: int
    fewest_nodes: int
    p95: Interval  # in ms, at the peak, of those that are needed
    most: Interval  # photos a second in one replica
    target_ongoing: float
    target_wait_s: float
    look_back_s: float
    room: int

    @property
    def per_month(self) -> tuple[float, float]:
        """Cost with the fewest nodes all the time, and with all."""
        price = self.instance.hourly if self.instance else math.nan
        return self.fewest_nodes * price * HOURS, self.nodes * price * HOURS

    @property
    def per_million(self) -> float:
        """Cost of a million photos at the peak."""
        price = self.instance.hourly if self.instance else math.nan
        return self.nodes * price / (self.peak_rps * 3600) * 1e6

    def serve(self) -> dict[str, Any]:
        """The Serve patch: an overlay's serve.yaml, or SERVE_CONFIG_DIFFERENCE."""
        shipped = yaml.safe_load((PRODUCTION / "serve.yaml").read_text())["applications"][0]["deployments"][0]
        scaling = {
            "min_replicas": self.fewest,
            "max_replicas": self.replicas,
            "target_ongoing_requests": self.target_ongoing,
            "look_back_period_s": self.look_back_s,
            "policy": {"policy_kwargs": {"target_s": self.target_wait_s}},
        }
        door = {
            "name": "Ingress",
            "num_replicas": None,
            "max_ongoing_requests": self.room + BESIDE,
            "max_queued_requests": self.room + BESIDE,
            "autoscaling_config": merged(shipped["autoscaling_config"], scaling),
            "user_config": {
                "max_batch_size": self.curve.max_batch_size,
                "batch_wait_timeout_s": self.curve.batch_wait_timeout_s,
            },
        }
        if "gpu" in self.curve.hardware:
            door["ray_actor_options"] = {"num_gpus": math.floor(1e4 / self.curve.replicas) / 1e4}
        args = {"max_waiting_images": self.room}
        return {"applications": [{"name": "recognition", "args": args, "deployments": [door]}]}

    def workers(self) -> list[dict[str, Any]]:
        """JSON 6902 for the RayService: the worker group's size."""
        group = "/spec/rayClusterConfig/workerGroupSpecs/0"
        sizes = {"replicas": self.fewest_nodes, "minReplicas": self.fewest_nodes, "maxReplicas": self.nodes}
        return [{"op": "replace", "path": f"{group}/{key}", "value": value} for key, value in sizes.items()]

    def nodepool(self) -> dict[str, Any]:
        """A merge patch: room for two clusters, as an upgrade by `NewCluster` runs both."""
        gpu = "gpu" in self.curve.hardware
        cores = int(self.curve.hardware["cores"])
        limits = {"nvidia.com/gpu": str(2 * self.nodes)} if gpu else {"cpu": str(2 * self.nodes * cores + 4)}
        metadata = {"name": "recognition-gpu" if gpu else "recognition-cpu"}
        return {"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": metadata, "spec": {"limits": limits}}

    def write(self, folder: Path) -> list[Path]:
        """The three patches; returns the files."""
        folder.mkdir(parents=True, exist_ok=True)
        said = f"# For {self.peak_rps:g} photos/s with p95 {self.p95_ms:g} ms, by the curve of {self.curve.measured}.\n"
        written = []
        for name in ("serve", "workers", "nodepool"):
            written.append(folder / f"{name}.yaml")
            written[-1].write_text(said + yaml.safe_dump(getattr(self, name)(), sort_keys=False))
        return written

    def rows(self) -> Iterator[tuple[str, str]]:
        """The plan as a table."""
        curve = self.curve
        machine = ", ".join(f"{key} {value}" for key, value in curve.hardware.items())
        yield "measured", f"{curve.measured}, {curve.replicas} replica(s) of {curve.engine['name']} on {machine}"
        yield (
            "one replica",
            f"{self.most:.1f} photos/s at most; followed {curve.knee.offered:g}/s",
        )
        yield "batch", f"{curve.max_batch_size}, waiting {curve.batch_wait_timeout_s * 1000:g} ms at most"
        yield "replicas for the peak", f"{self.needed}: p95 {self.p95:.0f} ms of {self.p95_ms:.0f}"
        lost = "nothing" if self.availability == "none" else f"a {self.availability}"
        yield "with headroom", f"{self.replicas}, so that {lost} may be lost"
        yield "min_replicas, max_replicas", f"{self.fewest}, {self.replicas}"
        yield (
            "target_ongoing_requests",
            f"{self.target_ongoing:g} over {self.look_back_s:g} s, or photos wait {self.target_wait_s * 1000:.0f} ms",
        )
        yield "max_waiting_images", f"{self.room}: a full replica answers its last after twice the objective"
        yield "max_ongoing_requests, max_queued_requests", f"{self.room + BESIDE}"
        yield "nodes", f"{self.fewest_nodes} to {self.nodes} of {curve.replicas} replica(s); twice during an upgrade"
        yield "node pool's limit", str(self.nodepool()["spec"]["limits"])
        if self.instance:
            low, high = self.per_month
            yield "cost", f"{low:,.0f} to {high:,.0f} a month of {self.instance.name}, as the load is"
            yield "cost of a million photos", f"{self.per_million:,.2f} at the peak"


def make(
    curve: Curve, peak_rps: float, p95_ms: float, *, availability: Availability = "node",
    instance: Instance | None = None, low_rps: float | None = None, seed: int = 0,
) -> Plan:  # fmt: skip
    """The smallest that meets the objective at the upper end of the interval. Raises Unreachable."""
    rng = np.random.default_rng(seed)
    station = curve.station()
    drawn = [curve.station(rng) for _ in range(DRAWS)]
    per_node = curve.replicas
    needed, p95 = smallest(station, drawn, peak_rps, p95_ms=p95_ms, rng=rng, per_node=per_node)
    nodes = spare(math.ceil(needed / per_node), availability)
    # Below the peak the autoscaler takes the others away; what is lost at night must be borne too.
    quiet = min(low_rps or peak_rps / 4, peak_rps)
    low, _ = smallest(station, drawn, quiet, p95_ms=p95_ms, rng=rng, per_node=per_node)
    fewest_nodes = min(spare(math.ceil(low / per_node), availability), nodes)
    fewest = low if availability == "none" else fewest_nodes * per_node  # each node has some, whichever is lost
    spread = at(station, nodes * per_node, peak_rps, rng, nodes)
    edge = largest(station, needed, p95_ms, rng, math.ceil(needed / per_node))
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
    """Replicas that meet the objective, and their p95 in ms."""
    idle = at(station, 1, 0.02 * station.most, rng).percentile() * 1000
    if idle > p95_ms:
        raise Unreachable(f"an idle replica has a p95 of {idle:.0f} ms, {p95_ms:.0f} ms are wanted: no number will do")
    for number in range(max(1, math.ceil(rate / station.most)), MOST_REPLICAS):
        fronts = math.ceil(number / per_node)
        if at(station, number, rate, rng, fronts).percentile() * 1000 <= p95_ms:
            found = predicted(drawn, number, rate, rng, fronts)
            if found.high <= p95_ms:
                return number, found
    raise Unreachable(f"more than {MOST_REPLICAS} replicas")


def predicted(drawn: list[Station], number: int, rate: float, rng: np.random.Generator, fronts: int) -> Interval:
    """p95 in ms."""
    each = [at(one, number, rate, rng, fronts).percentile() * 1000 for one in drawn]
    return interval(each, float(np.median(each)))


def largest(station: Station, number: int, p95_ms: float, rng: np.random.Generator, fronts: int) -> Outcome:
    """What happens at the largest load at which they still meet the objective."""
    low, high = 0.0, number * station.most
    for _ in range(8):
        middle = (low + high) / 2
        tried = at(station, number, middle, rng, fronts)
        if tried.percentile() * 1000 <= p95_ms:
            low, found = middle, tried
        else:
            high = middle
    return found


def interval(values: list[float], middle: float) -> Interval:
    """Around an estimate: what chance did to the measurement, and what the model and the machine are off by."""
    low, high = np.percentile(values, [5, 95]).tolist()
    return Interval(min(low, middle) * (1 - OFF), middle, max(high, middle) * (1 + OFF))


def at(station: Station, number: int, rate: float, rng: np.random.Generator, fronts: int = 1) -> Outcome:
    """REQUESTS Poisson arrivals."""
    return simulate(station, number, trace.steady(rate, REQUESTS / rate).arrivals(rng), rng, fronts)


def steady_look_back(ongoing: float, target: float) -> float:
    """Seconds over which three sigma of the mean of `ongoing` requests are less than one replica's share.

    Each replica notes their number every METRICS_S, about Poisson. With a shorter time a replica is never taken away:
    one moment in `downscale_delay_s` that calls for it keeps it.
    """
    notes = math.ceil(9 * ongoing / target**2)
    return float(min(max(notes * METRICS_S, LEAST_LOOK_BACK_S), MOST_LOOK_BACK_S))


def spare(nodes: int, availability: Availability) -> int:
    """Nodes of which one, or those of one of ZONES zones, may be lost while the others carry the load."""
    if availability == "node":
        return nodes + 1
    if availability == "zone":
        return next(n for n in itertools.count(nodes + 1) if n - math.ceil(n / ZONES) >= nodes)
    return nodes
