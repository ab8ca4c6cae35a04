"""The base class of all deployments: what Serve's health checks set going in every replica."""

from __future__ import annotations

from serve_app.graph import controller_watchdog, process_watchdog


class Replica:
    """Base of the ingress and of all stages."""

    async def check_health(self) -> None:
        """Serve's controller calls this every few seconds, from when the replica is loaded."""
        process_watchdog.watch()
        controller_watchdog.heard()
