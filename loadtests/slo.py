"""A service level objective, and what breaks it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Objective:
    """Of so many requests at least, 95 % are answered in time, and no more than a part fails or is refused."""

    p95_ms: float
    error_ratio: float = 0.01
    min_requests: int = 20

    def breaches(self, requests: int, failed: int, p95_ms: float) -> list[str]:
        """In words; nothing when it is met. Too few requests prove nothing, so they are a breach too."""
        found = []
        if requests < self.min_requests:
            found.append(f"{requests} requests, {self.min_requests} are needed to judge")
        if failed > self.error_ratio * requests:
            found.append(f"{failed} of {requests} failed, {self.error_ratio:.2%} may")
        if requests and not p95_ms <= self.p95_ms:
            found.append(f"p95 {p95_ms:.0f} ms, {self.p95_ms:.0f} ms are allowed")
        return found
