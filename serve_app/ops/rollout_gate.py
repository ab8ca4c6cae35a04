"""A Serve application without a route that delays an upgrade until Kubernetes sends requests to the new workers.

KubeRay points the Service at a new cluster when all its applications are RUNNING. The new pods may not have passed
their readiness probe by then, and until they have, the Service has no endpoint and clients get an error. This
application is RUNNING only when HAProxy of every node has answered that probe for longer than a few of its periods.
"""

# No `from __future__ import annotations` here: Serve reads the type of `args` at run time and ignores it as a string.
import time
from typing import Any
from urllib.request import urlopen

import ray
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.schema import ProxyStatus

from serve_app.settings import Seconds

CHECK_S = 0.5
LEAVING = (ProxyStatus.DRAINING, ProxyStatus.DRAINED)


class GateSettings(BaseModel):
    """The application's `args:`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: int = Field(8000, description="Serve's HTTP port")
    healthy_s: Seconds = Field(10.0, description="how long every node must have answered without a break, in seconds")


class RolloutGate:
    """One replica, on a worker. It does nothing but start late."""

    def __init__(self, settings: GateSettings) -> None:
        """Returns when the nodes have been healthy for long enough. Until then the replica is not ready."""
        since = None
        while since is None or time.monotonic() - since < settings.healthy_s:
            time.sleep(CHECK_S)
            if not all(healthy(f"http://{address}:{settings.port}/-/healthz") for address in addresses()):
                since = None
            elif since is None:
                since = time.monotonic()


def addresses() -> list[str]:
    """The IP addresses of this node, and of the others whose HAProxy takes requests or soon will."""
    taking = {node for node, status in serve.status().proxies.items() if status not in LEAVING}
    taking.discard(ray.get_runtime_context().get_node_id())
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    others = [node["NodeManagerAddress"] for node in nodes if node["Alive"] and node["NodeID"] in taking]
    return ["127.0.0.1", *others]


def healthy(url: str) -> bool:
    """Whether `url` answers 200 within 2 s."""
    try:
        with urlopen(url, timeout=2) as answer:  # noqa: S310 - http, made above
            return bool(answer.status == 200)
    except OSError:  # includes other statuses
        return False


def build(args: GateSettings) -> Application:
    """Builds the application."""
    deployment: Any = serve.deployment  # Ray's types say that it returns the class itself
    gate: Application = deployment(RolloutGate).bind(args)
    return gate
