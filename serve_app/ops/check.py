"""`python -m serve_app check`: finds settings that are each valid but do not work together.

It reads a rendered overlay and its Serve configuration, `constraints.txt`, the Dockerfile, Terraform and the add-ons'
values. The rules are in `rules/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from serve_app.ops.overlay import Finding, Overlay
from serve_app.ops.rules import availability, capacity, consistency, nodes, observability, security

RULES: tuple[Callable[[Overlay], Iterator[Finding]], ...] = (
    *availability.RULES, *capacity.RULES, *nodes.RULES, *security.RULES, *observability.RULES, *consistency.RULES,
)  # fmt: skip


def check(overlay: Overlay) -> list[Finding]:
    """The findings of all rules."""
    return [finding for rule in RULES for finding in rule(overlay)]
