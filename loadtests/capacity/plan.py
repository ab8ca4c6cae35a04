"""A plan: what to run for a peak and an objective, its cost, and its patches. sizing.py makes it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from loadtests.capacity.curve import Curve
from serve_app.batch.price import Instance
from serve_app.ops import manifests
from serve_app.ops.serve_config import merged

Availability = Literal["none", "node", "zone"]
HOURS = 730  # in a month
BESIDE = 96  # requests in a replica beyond its photos: probes, and requests that will be refused
PRODUCTION = manifests.OVERLAYS / "production"


class Interval(NamedTuple):
    """An estimate with its lower and upper bound."""

    low: float
    middle: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.middle:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


@dataclass(frozen=True)
class Plan:
    """What to run for a peak and an objective."""

    curve: Curve
    peak_rps: float
    p95_ms: float
    availability: Availability
    instance: Instance | None
    needed: int  # replicas that carry the peak
    replicas: int  # including those that may be lost
    fewest: int  # replicas at the quietest hour, including those that may be lost
    nodes: int
    fewest_nodes: int
    p95: Interval  # in ms, at the peak, with the needed replicas
    most: Interval  # photos/s of one replica
    target_ongoing: float
    target_wait_s: float
    look_back_s: float
    room: int  # photos in a replica; more are refused

    @property
    def per_month(self) -> tuple[float, float]:
        """Cost of a month with the fewest nodes all the time, and with all nodes."""
        price = self.instance.hourly if self.instance else math.nan
        return self.fewest_nodes * price * HOURS, self.nodes * price * HOURS

    @property
    def per_million(self) -> float:
        """Cost of a million photos at the peak rate."""
        return self.instance.per_million(self.nodes, self.peak_rps) if self.instance else math.nan

    def serve(self) -> dict[str, Any]:
        """The Serve patch, for an overlay's serve.yaml or for SERVE_CONFIG_DIFFERENCE."""
        shipped = yaml.safe_load((PRODUCTION / "serve.yaml").read_text())["applications"][0]["deployments"][0]
        scaling = {
            "min_replicas": self.fewest,
            "max_replicas": self.replicas,
            "target_ongoing_requests": self.target_ongoing,
            "look_back_period_s": self.look_back_s,
            "policy": {"policy_kwargs": {"target_s": self.target_wait_s}},
        }
        ingress = {
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
        # The replicas that were measured together fill a pod. Ray counts resources in ten-thousandths.
        pod = {"num_cpus": self.pod_cores, "num_gpus": int("gpu" in self.curve.hardware)}
        ingress["ray_actor_options"] = {
            resource: math.floor(1e4 * whole / self.curve.replicas) / 1e4 for resource, whole in pod.items()
        }
        args = {"max_waiting_images": self.room}
        return {"applications": [{"name": "recognition", "args": args, "deployments": [ingress]}]}

    @property
    def pod_cores(self) -> int:
        """CPU request of a worker's pod, 3/4 of the node: a second worker does not fit beside it, other pods do."""
        return max(1, 3 * int(self.curve.hardware["cores"]) // 4)

    @property
    def most_workers(self) -> int:
        """One more than the replicas fill, because an update in place starts a new replica first."""
        return self.nodes + 1

    def workers(self) -> list[dict[str, Any]]:
        """A JSON 6902 patch for the RayService: the number of workers and their size."""
        group = "/spec/rayClusterConfig/workerGroupSpecs/0"
        sizes = {
            "replicas": self.fewest_nodes,
            "minReplicas": self.fewest_nodes,
            "maxReplicas": self.most_workers,
            "template/spec/containers/0/resources/requests/cpu": str(self.pod_cores),
        }
        return [{"op": "replace", "path": f"{group}/{key}", "value": value} for key, value in sizes.items()]

    def nodepool(self) -> dict[str, Any]:
        """A merge patch for the node pool. Its limit fits three clusters: a rollback during an upgrade runs as many."""
        gpu = "gpu" in self.curve.hardware
        cores = int(self.curve.hardware["cores"])
        workers = 3 * self.most_workers
        limits = {"nvidia.com/gpu": str(workers)} if gpu else {"cpu": str(workers * cores + 4)}
        metadata = {"name": "recognition-gpu" if gpu else "recognition-cpu"}
        return {"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": metadata, "spec": {"limits": limits}}

    def budget(self) -> dict[str, Any]:
        """A merge patch for the disruption budget: drains may evict one worker at a time."""
        metadata = {"name": "recognition-workers"}
        spec = {"minAvailable": self.fewest_nodes - 1}
        return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata, "spec": spec}

    def write(self, folder: Path) -> list[Path]:
        """Writes the four patches; returns their paths. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        load = f"{self.peak_rps:g} photos/s with p95 {self.p95_ms:g} ms"
        header = f"# For {load}, from the curve of {self.curve.measured}.\n"
        written = []
        for name in ("serve", "workers", "nodepool", "budget"):
            written.append(folder / f"{name}.yaml")
            written[-1].write_text(header + yaml.safe_dump(getattr(self, name)(), sort_keys=False))
        return written

    def rows(self) -> Iterator[tuple[str, str]]:
        """The plan as rows (name, value) of a table."""
        curve = self.curve
        machine = ", ".join(f"{key} {value}" for key, value in curve.hardware.items())
        yield "measured", f"{curve.measured}, {curve.replicas} replica(s) of {curve.engine['name']} on {machine}"
        yield "one replica", f"{self.most:.1f} photos/s at most; kept up with {curve.knee.offered:g}/s"
        yield "batch", f"at most {curve.max_batch_size}, waits at most {curve.batch_wait_timeout_s * 1000:g} ms"
        yield "replicas for the peak", f"{self.needed}: p95 {self.p95:.0f} ms, objective {self.p95_ms:.0f} ms"
        lost = "nothing" if self.availability == "none" else f"a {self.availability}"
        yield "with headroom", f"{self.replicas}: {lost} may be lost"
        yield "min_replicas, max_replicas", f"{self.fewest}, {self.replicas}"
        yield (
            "target_ongoing_requests",
            f"{self.target_ongoing:g} over {self.look_back_s:g} s, or a wait of {self.target_wait_s * 1000:.0f} ms",
        )
        yield "max_waiting_images", f"{self.room}: a full replica answers its last photo after twice the objective"
        yield "max_ongoing_requests, max_queued_requests", f"{self.room + BESIDE}"
        yield (
            "nodes",
            f"{self.fewest_nodes} to {self.nodes} of {curve.replicas} replica(s); an update in place needs one more, "
            "a new cluster twice as many",
        )
        yield "node pool's limit", str(self.nodepool()["spec"]["limits"])
        if self.instance:
            low, high = self.per_month
            yield "cost", f"{low:,.0f} to {high:,.0f} a month with {self.instance.name}, depending on the load"
            yield "cost of a million photos", f"{self.per_million:,.2f} at the peak"
