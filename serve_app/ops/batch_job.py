"""Reads a rendered RayJob, of `kuberay/jobs/`, for the rules of `check`.

Must not know the rules.
"""

from __future__ import annotations

from typing import Any

from serve_app.ops.ray_environment import BATCH
from serve_app.ops.rendered import Rendered


class BatchJob(Rendered):
    """A rendered RayJob. One pod more than its cluster's submits the entrypoint."""

    KIND, CLUSTER, VARIABLES = "RayJob", "rayClusterSpec", BATCH

    @property
    def job(self) -> dict[str, Any]:
        """Its spec."""
        spec: dict[str, Any] = self.root["spec"]
        return spec

    def all_templates(self) -> list[dict[str, Any]]:
        """The templates of Ray's pods, and that of the submitter if the job has one."""
        submitter = self.job.get("submitterPodTemplate")
        return [*self.templates(), *([submitter] if submitter else [])]
