"""Reads a rendered overlay of the service for the rules of `check`.

Must not know the rules.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from serve_app.ops.ray_environment import VARIABLES
from serve_app.ops.rendered import Rendered


class Overlay(Rendered):
    """A rendered overlay: a RayService, with its Serve configuration."""

    KIND, CLUSTER, VARIABLES = "RayService", "rayClusterConfig", VARIABLES

    def __init__(
        self, file: Path, text: str, locked_ray: str, dockerfile: str, terraform: str, *, monitoring: str = "{}"
    ) -> None:
        super().__init__(file, text, locked_ray, dockerfile, terraform, monitoring=monitoring)
        self.service = self.root["spec"]
        self.worker_resources = self.workers["template"]["spec"]["containers"][0]["resources"]
        self.serve: dict[str, Any] = yaml.safe_load(self.service["serveConfigV2"])
        self.args: dict[str, Any] = self.serve["applications"][0]["args"]
        self.deployments: list[dict[str, Any]] = self.serve["applications"][0]["deployments"]

    def worker_capacity(self) -> dict[str, float]:
        """The `num_cpus` and `num_gpus` that Ray can assign on one worker."""
        requests, limits = self.worker_resources["requests"], self.worker_resources.get("limits", {})
        cpus = float(self.workers["rayStartParams"].get("num-cpus", parse_quantity(requests["cpu"])))
        return {"num_cpus": cpus, "num_gpus": float(limits.get("nvidia.com/gpu", 0))}

    def replicas_per_worker(self, deployment: dict[str, Any]) -> float:
        """How many replicas of a deployment fit on one worker; infinite when they request no resources."""
        capacity, needs = self.worker_capacity(), requested_resources(deployment)
        return min((int(capacity[what] / need) for what, need in needs.items() if need), default=math.inf)


def read(file: Path) -> Overlay:
    """Reads a rendered overlay. Raises what `Rendered.read` does."""
    return Overlay.read(file)


def requested_resources(deployment: dict[str, Any]) -> dict[str, float]:
    """The `num_cpus` and `num_gpus` that one replica requests from Ray; Serve's default is 1 CPU."""
    options = deployment.get("ray_actor_options") or {}
    return {"num_cpus": options.get("num_cpus", 1), "num_gpus": options.get("num_gpus", 0)}


def max_replicas(deployment: dict[str, Any]) -> int:
    """The largest number of replicas of a deployment."""
    scaling = deployment.get("autoscaling_config") or {}
    return int(scaling.get("max_replicas") or deployment.get("num_replicas") or 1)


def parse_quantity(quantity: str) -> float:
    """Converts a Kubernetes quantity such as `500m` or `2` to a number."""
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)
