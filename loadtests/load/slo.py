"""A service level objective (SLO), and the check whether it is met."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Objective:
    """95 % of requests are answered within `p95_ms`, and at most `error_ratio` of them fail or are refused."""

    p95_ms: float
    error_ratio: float = 0.01
    min_requests: int = 20

    def breaches(self, requests: int, failed: int, p95_ms: float) -> list[str]:
        """The breaches in words; empty when the objective is met. Fewer than `min_requests` are a breach too."""
        found = []
        if requests < self.min_requests:
            found.append(f"{requests} requests, {self.min_requests} are needed to judge")
        if failed > self.error_ratio * requests:
            found.append(f"{failed} of {requests} failed, at most {self.error_ratio:.2%} may")
        if requests and not p95_ms <= self.p95_ms:
            found.append(f"p95 {p95_ms:.0f} ms, at most {self.p95_ms:.0f} ms are allowed")
        return found
