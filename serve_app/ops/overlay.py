"""Reads a rendered Kubernetes overlay for the rules of `check`, and defines their findings.

Must not know the rules.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.settings import ROOT


@dataclass(frozen=True)
class Finding:
    """A problem in `file` at `line` (counted from 1): what goes wrong and why, and how to fix it."""

    file: Path
    line: int
    why: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.why}. Fix: {self.fix}"


class Overlay:
    """A rendered overlay: its Kubernetes objects, its Serve configuration, and the files that must agree with them."""

    def __init__(
        self, file: Path, text: str, locked_ray: str, dockerfile: str, terraform: str, *, monitoring: str = "{}"
    ) -> None:
        self.file, self._lines = file, text.splitlines()
        self.objects: list[dict[str, Any]] = [o for o in yaml.safe_load_all(text) if o]
        self.service = self.kind("RayService")[0]["spec"]
        self.cluster = self.service["rayClusterConfig"]
        (self.workers,) = self.cluster["workerGroupSpecs"]
        self.worker_resources = self.workers["template"]["spec"]["containers"][0]["resources"]
        self.serve: dict[str, Any] = yaml.safe_load(self.service["serveConfigV2"])
        self.args: dict[str, Any] = self.serve["applications"][0]["args"]
        self.deployments: list[dict[str, Any]] = self.serve["applications"][0]["deployments"]
        self.locked_ray, self.dockerfile, self.terraform = locked_ray, dockerfile, terraform
        self.monitoring: dict[str, Any] = yaml.safe_load(monitoring)

    def kind(self, kind: str) -> list[dict[str, Any]]:
        """All objects of one kind."""
        return [o for o in self.objects if o["kind"] == kind]

    def templates(self) -> list[dict[str, Any]]:
        """The pod templates: the one of the head, then one for each worker group."""
        return [group["template"] for group in (self.cluster["headGroupSpec"], *self.cluster["workerGroupSpecs"])]

    def pods(self) -> list[dict[str, Any]]:
        """The pod specs, in the order of `templates`."""
        return [template["spec"] for template in self.templates()]

    def standalone_pods(self) -> list[dict[str, Any]]:
        """The pod templates as Pod objects, for linters that do not look into a RayService."""
        namespace = self.kind("RayService")[0]["metadata"]["namespace"]
        made = []
        for n, template in enumerate(self.templates()):
            metadata = template["metadata"] | {"name": f"{self.file.stem}-{n}", "namespace": namespace}
            made.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
        return made

    def egress_ports(self) -> set[int]:
        """The ports that pods may call by the network policies; all of them when no policy limits egress."""
        policies = [p["spec"] for p in self.kind("NetworkPolicy") if "Egress" in p["spec"].get("policyTypes", [])]
        rules = [rule for policy in policies for rule in policy.get("egress", [])]
        return {port["port"] for rule in rules for port in rule.get("ports", [])} if policies else set(range(65536))

    def env(self, pod: dict[str, Any]) -> dict[str, str]:
        """The environment of a pod's Ray container, its first one."""
        return {e["name"]: e.get("value", "") for e in pod["containers"][0].get("env", [])}

    def worker_capacity(self) -> dict[str, float]:
        """The `num_cpus` and `num_gpus` that Ray can assign on one worker."""
        requests, limits = self.worker_resources["requests"], self.worker_resources.get("limits", {})
        cpus = float(self.workers["rayStartParams"].get("num-cpus", parse_quantity(requests["cpu"])))
        return {"num_cpus": cpus, "num_gpus": float(limits.get("nvidia.com/gpu", 0))}

    def replicas_per_worker(self, deployment: dict[str, Any]) -> float:
        """How many replicas of a deployment fit on one worker; infinite when they request no resources."""
        capacity, needs = self.worker_capacity(), requested_resources(deployment)
        return min((int(capacity[what] / need) for what, need in needs.items() if need), default=math.inf)

    def finding(self, key: str, why: str, fix: str) -> Finding:
        """A finding at the first line that has `key`, or at line 1 if none has."""
        line = next((n for n, text in enumerate(self._lines, 1) if re.search(rf"\b{re.escape(key)}:", text)), 1)
        return Finding(self.file, line, why, fix)


def read(file: Path) -> Overlay:
    """Reads a rendered overlay, and this checkout's constraints.txt, Dockerfile, Terraform files and add-on values.

    Raises OSError when a file cannot be read; IndexError or KeyError when the overlay has no complete RayService.
    """
    locked = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    terraform = "".join(path.read_text() for path in sorted((ROOT / "terraform").glob("*.tf")))
    monitoring = (ROOT / "kuberay" / "addons" / "monitoring.yaml").read_text()
    dockerfile = (ROOT / "Dockerfile").read_text()
    return Overlay(file, file.read_text(), locked[1] if locked else "", dockerfile, terraform, monitoring=monitoring)


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
