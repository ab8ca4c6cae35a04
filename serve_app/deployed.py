"""A rendered overlay as `check` sees it, and what there is to say of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.weights import ROOT


@dataclass(frozen=True)
class Finding:
    """Where, what will go wrong and why, and what to do."""

    file: Path
    line: int
    why: str
    cure: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.why}. Cure: {self.cure}"


class Deployed:
    """A rendered overlay, read once: its objects, and the Serve configuration inside."""

    def __init__(self, file: Path, text: str, locked_ray: str, dockerfile: str, terraform: str) -> None:
        self.file, self._lines = file, text.splitlines()
        self.objects: list[dict[str, Any]] = [o for o in yaml.safe_load_all(text) if o]
        self.service = self.kind("RayService")[0]["spec"]
        self.cluster = self.service["rayClusterConfig"]
        (self.workers,) = self.cluster["workerGroupSpecs"]
        self.room = self.workers["template"]["spec"]["containers"][0]["resources"]  # of one worker
        self.serve: dict[str, Any] = yaml.safe_load(self.service["serveConfigV2"])
        self.args: dict[str, Any] = self.serve["applications"][0]["args"]
        self.deployments: list[dict[str, Any]] = self.serve["applications"][0]["deployments"]
        self.locked_ray, self.dockerfile, self.terraform = locked_ray, dockerfile, terraform

    def kind(self, kind: str) -> list[dict[str, Any]]:
        """All objects of a kind."""
        return [o for o in self.objects if o["kind"] == kind]

    def templates(self) -> list[dict[str, Any]]:
        """The pod templates: the head's first, then each worker group's."""
        return [group["template"] for group in (self.cluster["headGroupSpec"], *self.cluster["workerGroupSpecs"])]

    def pods(self) -> list[dict[str, Any]]:
        """Their specs."""
        return [template["spec"] for template in self.templates()]

    def alone(self) -> list[dict[str, Any]]:
        """The pods as objects of their own, for linters that do not look into a RayService."""
        namespace = self.kind("RayService")[0]["metadata"]["namespace"]
        made = []
        for n, template in enumerate(self.templates()):
            metadata = template["metadata"] | {"name": f"{self.file.stem}-{n}", "namespace": namespace}
            made.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
        return made

    def env(self, pod: dict[str, Any]) -> dict[str, str]:
        """Of its Ray container."""
        return {e["name"]: e.get("value", "") for e in pod["containers"][0].get("env", [])}

    def booked(self) -> dict[str, float]:
        """What Ray books at most on one worker."""
        cpus = float(self.workers["rayStartParams"].get("num-cpus", cores(self.room["requests"]["cpu"])))
        return {"num_cpus": cpus, "num_gpus": float(self.room.get("limits", {}).get("nvidia.com/gpu", 0))}

    def places(self, deployment: dict[str, Any]) -> float:
        """How many of its replicas fit on one worker; any number when they book nothing."""
        shares = [(self.booked()[what], share) for what, share in asked(deployment).items() if share]
        return min((int(room / share) for room, share in shares), default=math.inf)

    def found(self, key: str, why: str, cure: str) -> Finding:
        """At the first line with this key."""
        line = next((n for n, text in enumerate(self._lines, 1) if re.search(rf"\b{re.escape(key)}:", text)), 1)
        return Finding(self.file, line, why, cure)


def read(file: Path) -> Deployed:
    """A rendered overlay, with this checkout's lock, Dockerfile and Terraform. Raises OSError, IndexError, KeyError."""
    locked = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    account = "".join(path.read_text() for path in sorted((ROOT / "terraform").glob("*.tf")))
    return Deployed(file, file.read_text(), locked[1] if locked else "", (ROOT / "Dockerfile").read_text(), account)


def asked(deployment: dict[str, Any]) -> dict[str, float]:
    """What Ray books for one replica."""
    options = deployment.get("ray_actor_options") or {}
    return {"num_cpus": options.get("num_cpus", 1), "num_gpus": options.get("num_gpus", 0)}


def most(deployment: dict[str, Any]) -> int:
    """The most replicas it may have."""
    scaling = deployment.get("autoscaling_config") or {}
    return int(scaling.get("max_replicas") or deployment.get("num_replicas") or 1)


def cores(quantity: str) -> float:
    """Kubernetes' `500m` or `2`."""
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)
