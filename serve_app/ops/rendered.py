"""Reads a rendered Kubernetes file with a Ray cluster for the rules of `check`, and defines their findings.

Must not know the rules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

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


class Rendered:
    """A rendered file: its Kubernetes objects, the cluster in one of them, and the files that must agree with them."""

    KIND: ClassVar[str]  # of the object that has the cluster
    CLUSTER: ClassVar[str]  # its key there
    VARIABLES: ClassVar[dict[str, str]]  # the environment that its Ray needs

    def __init__(
        self, file: Path, text: str, locked_ray: str, dockerfile: str, terraform: str, *, monitoring: str = "{}"
    ) -> None:
        self.file, self._lines = file, text.splitlines()
        self.objects: list[dict[str, Any]] = [o for o in yaml.safe_load_all(text) if o]
        self.root = self.kind(self.KIND)[0]
        self.cluster = self.root["spec"][self.CLUSTER]
        (self.workers,) = self.cluster["workerGroupSpecs"]
        self.locked_ray, self.dockerfile, self.terraform = locked_ray, dockerfile, terraform
        self.monitoring: dict[str, Any] = yaml.safe_load(monitoring)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Reads a file, and this checkout's constraints.txt, Dockerfile, Terraform files and add-on values.

        Raises OSError when a file cannot be read; IndexError or KeyError when it has no complete object of KIND.
        """
        locked = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
        terraform = "".join(path.read_text() for path in sorted((ROOT / "terraform").glob("*.tf")))
        monitoring = (ROOT / "kuberay" / "addons" / "monitoring.yaml").read_text()
        dockerfile = (ROOT / "Dockerfile").read_text()
        return cls(file, file.read_text(), locked[1] if locked else "", dockerfile, terraform, monitoring=monitoring)

    def kind(self, kind: str) -> list[dict[str, Any]]:
        """All objects of one kind."""
        return [o for o in self.objects if o["kind"] == kind]

    def templates(self) -> list[dict[str, Any]]:
        """The templates of Ray's pods: the one of the head, then one for each worker group."""
        return [group["template"] for group in (self.cluster["headGroupSpec"], *self.cluster["workerGroupSpecs"])]

    def all_templates(self) -> list[dict[str, Any]]:
        """The templates of all pods."""
        return self.templates()

    def pods(self) -> list[dict[str, Any]]:
        """The pod specs, in the order of `templates`."""
        return [template["spec"] for template in self.templates()]

    def standalone_pods(self) -> list[dict[str, Any]]:
        """All pod templates as Pod objects, for linters that do not look into KubeRay's objects."""
        namespace = self.root["metadata"]["namespace"]
        made = []
        for n, template in enumerate(self.all_templates()):
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

    def finding(self, key: str, why: str, fix: str) -> Finding:
        """A finding at the first line that has `key`, or at line 1 if none has."""
        line = next((n for n, text in enumerate(self._lines, 1) if re.search(rf"\b{re.escape(key)}:", text)), 1)
        return Finding(self.file, line, why, fix)
