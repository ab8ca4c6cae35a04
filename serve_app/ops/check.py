"""`python -m serve_app check`: finds settings that are each valid but do not work together.

It reads a rendered overlay and its Serve configuration, or a batch's RayJob, and `constraints.txt`, the Dockerfile,
Terraform and the add-ons' values. The rules are in `rules/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from serve_app.ops.batch_job import BatchJob
from serve_app.ops.overlay import Overlay
from serve_app.ops.rendered import Finding
from serve_app.ops.rules import availability, batch, capacity, consistency, nodes, observability, security

RULES: tuple[Callable[[Overlay], Iterator[Finding]], ...] = (
    *availability.RULES, *capacity.RULES, *nodes.RULES, *security.RULES, *observability.RULES, *consistency.RULES,
)  # fmt: skip
BATCH_RULES: tuple[Callable[[BatchJob], Iterator[Finding]], ...] = (
    *batch.RULES, capacity.head_runs_no_replicas, security.token, security.dns, security.service_account,
    consistency.versions, consistency.probes,
)  # fmt: skip


def read(file: Path) -> Overlay | BatchJob:
    """Reads a rendered file, a batch if it has a RayJob. Raises what `Rendered.read` does."""
    batched = re.search("^kind: RayJob$", file.read_text(), re.MULTILINE)
    return BatchJob.read(file) if batched else Overlay.read(file)


def check(rendered: Overlay | BatchJob) -> list[Finding]:
    """The findings of all rules."""
    if isinstance(rendered, BatchJob):
        return [finding for rule in BATCH_RULES for finding in rule(rendered)]
    return [finding for rule in RULES for finding in rule(rendered)]
