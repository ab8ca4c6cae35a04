"""Ray's own switches, as environment variables of every process of the service. Set before Ray is imported.

Dockerfile and manifests set the same ones, less the ports and paths, which on a machine of its own may be Ray's.
"""

from __future__ import annotations

import socket
from pathlib import Path

SWITCHES = {
    # HAProxy in front of the replicas instead of Serve's proxy in Python: 0.5 ms of CPU a request instead of 7 ms, and
    # its manager's death loses no request.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # In the replica's HTTP server, before Serve looks at a request.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.proxy:middlewares",
    # Ray starts workers at niceness 15, behind everything else on the machine.
    "RAY_worker_niceness": "0",
    # 4 threads are HAProxy's default; at 1,000 requests/s it needs half of one.
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
}


def local(temp: Path) -> dict[str, str]:
    """SWITCHES, with HAProxy's files below `temp` and its own ports free ones, so that services do not meet."""
    files = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock", "METRICS_SOCKET_PATH": "metrics.sock"}
    files |= {"SERVER_STATE_BASE": "", "SERVER_STATE_FILE": "server-state"}
    paths = {f"RAY_SERVE_HAPROXY_{name}": str(temp / "haproxy" / file) for name, file in files.items()}
    ports = dict(zip(("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT"), free_ports(2), strict=True))
    return SWITCHES | paths | {name: str(port) for name, port in ports.items()}


def free_ports(count: int) -> list[int]:
    """TCP ports that nothing listens on, chosen by the system."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
