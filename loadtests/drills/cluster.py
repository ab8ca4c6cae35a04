"""The RayService of the local overlay on a Kubernetes cluster: kubectl, its objects, waits, a client pod, endpoints."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import IO, Any

import yaml

from loadtests.service import ROOT
from serve_app.ops import manifests

NAMESPACE, NAME = "recognition", "recognition"
READY_S = 900  # long enough for two clusters on two cores
SERVICE = f"{NAME}-serve-svc"
CLIENT, CODE = "traffic", "/tmp"  # noqa: S108 - the pod that sends requests, and its folder for the code that does


class Cluster:
    """Runs kubectl in one context."""

    def __init__(self, context: str) -> None:
        path = f"{ROOT}/.venv/bin{os.pathsep}{os.environ['PATH']}"
        self.typed = [shutil.which("kubectl", path=path) or "kubectl", "--context", context]

    def __call__(self, *typed: str, stdin: str | bytes | None = None, check: bool = True) -> str:
        """Runs kubectl in the service's namespace and returns its output. Raises CalledProcessError."""
        given = stdin.encode() if isinstance(stdin, str) else stdin
        command = [*self.typed, "-n", NAMESPACE, *typed]
        return subprocess.run(command, input=given, check=check, stdout=subprocess.PIPE).stdout.decode()

    def get(self, *typed: str) -> Any:  # noqa: ANN401 - any JSON value
        """An object, or a list of objects as its `items`. Raises CalledProcessError."""
        return json.loads(self("get", *typed, "-o", "json"))

    def conditions(self) -> dict[str, str]:
        """The status of each condition of the RayService; none while KubeRay has not seen what was applied last."""
        service = self.get("rayservice", NAME)
        if service.get("status", {}).get("observedGeneration") != service["metadata"]["generation"]:
            return {}
        return _conditions(service)

    def active(self) -> str:
        """The name of the RayCluster that serves."""
        return str(self.get("rayservice", NAME)["status"]["activeServiceStatus"]["rayClusterName"])

    def pods(self, node_type: str) -> dict[str, bool]:
        """The living pods of one type, `head` or `worker`, of the cluster that serves, and whether each is ready."""
        labels = f"ray.io/cluster={self.active()},ray.io/node-type={node_type}"
        living = [p for p in self.get("pods", "-l", labels)["items"] if "deletionTimestamp" not in p["metadata"]]
        return {p["metadata"]["name"]: _conditions(p).get("Ready") == "True" for p in living}

    def wait(self, what: str, met: Callable[[], bool], seconds: float = READY_S, hold_s: float = 0) -> None:
        """Waits until `met()` has been true for `hold_s` seconds.

        After `seconds` it prints the cluster's objects and raises TimeoutError.
        """
        end, since = time.monotonic() + seconds, math.inf
        while True:
            now = time.monotonic()
            since = min(since, now) if met() else math.inf
            if now - since >= hold_s:
                return
            if now > end:
                print(self("get", "rayservice,raycluster,pods", "-o", "wide", check=False))
                raise TimeoutError(f"timed out after {seconds:g} s, waiting until {what}")
            time.sleep(1)

    def settled(self) -> bool:
        """Whether one cluster is left, which serves."""
        found = self.conditions()
        serves = (found.get("Ready"), found.get("UpgradeInProgress")) == ("True", "False")
        return serves and len(self("get", "raycluster", "-o", "name").split()) == 1

    @contextmanager
    def proxy(self) -> Iterator[str]:
        """Yields the URL of the Service behind the API server's proxy, which follows the Service to a new cluster."""
        process = subprocess.Popen([*self.typed, "proxy", "--port=0"], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout
            base = process.stdout.readline().split()[-1]  # "Starting to serve on 127.0.0.1:…"
            yield f"http://{base}/api/v1/namespaces/{NAMESPACE}/services/{SERVICE}:8000/proxy"
        finally:
            process.terminate()
            process.wait(10)

    @contextmanager
    def client(self, image: str) -> Iterator[subprocess.Popen[str]]:
        """Yields `loadtests.drills.observation` in a pod, which sends to the Service's own address."""
        self("apply", "-f", "-", stdin=yaml.safe_dump(client_pod(image)))
        self("wait", f"pod/{CLIENT}", "--for=condition=Ready", "--timeout=5m")
        code = subprocess.run(["/bin/tar", "c", "-C", str(ROOT), "loadtests"], check=True, capture_output=True).stdout
        self("exec", "-i", CLIENT, "--", "tar", "x", "-C", CODE, stdin=code)
        typed = ["exec", "-i", CLIENT, "--", "python", "-m", "loadtests.drills.observation", f"http://{SERVICE}:8000"]
        command = [*self.typed, "-n", NAMESPACE, *typed]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def endpoints(self) -> Iterator[list[tuple[float, int]]]:
        """Yields a list that grows: the Service's number of ready endpoints, and since when (monotonic seconds).

        A watch that ends counts as no endpoint, so that nobody takes an old number for the present one.
        """
        seen: list[tuple[float, int]] = []
        # Not `get --watch -o jsonpath`: it ends without an error at the first slice that has no endpoint.
        watch = f"watch=1&resourceVersion=0&timeoutSeconds=86400&labelSelector=kubernetes.io/service-name%3D{SERVICE}"
        typed = ["get", "--raw", f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices?{watch}"]

        def read(output: IO[str]) -> None:
            ready: dict[str, int] = {}
            for line in output:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    break
                slice_, found = event["object"]["metadata"]["name"], event["object"].get("endpoints") or []
                gone = event["type"] == "DELETED"
                ready[slice_] = 0 if gone else sum(e["conditions"].get("ready", True) for e in found)
                seen.append((time.monotonic(), sum(ready.values())))
            seen.append((time.monotonic(), 0))

        with subprocess.Popen([*self.typed, *typed], stdout=subprocess.PIPE, text=True) as process:
            thread = threading.Thread(target=read, args=(process.stdout,))
            thread.start()
            try:
                yield seen
            finally:
                process.terminate()
                thread.join()


def _conditions(thing: dict[str, Any]) -> dict[str, str]:
    """The status of each condition of an object."""
    return {c["type"]: c["status"] for c in thing.get("status", {}).get("conditions", [])}


def dark(seen: list[tuple[float, int]], began: float, ended: float) -> float:
    """How long the Service had no ready endpoint between two moments, in seconds."""
    known = [count for at, count in seen if at <= began][-1:] or [0]
    states = [(began, known[0]), *((at, count) for at, count in seen if began < at < ended), (ended, 0)]
    return sum(b[0] - a[0] for a, b in pairwise(states) if not a[1])


def client_pod(image: str) -> dict[str, Any]:
    """A pod that only waits, and passes Pod Security `restricted`."""
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": CLIENT, "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "infinity"],
        "env": [{"name": "PYTHONPATH", "value": f"{CODE}:/app"}], "securityContext": restricted,
    }  # fmt: skip
    user = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"containers": [container], "securityContext": user, "terminationGracePeriodSeconds": 1}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": CLIENT, "namespace": NAMESPACE}, "spec": spec}


def rendered(cluster: Cluster, image: str, workers: int, version: str) -> list[dict[str, Any]]:
    """The objects of the local overlay, with another image and number of workers.

    Another `version`, an annotation of the pods, makes KubeRay start a new cluster.
    """
    manifests.write()
    objects = list(yaml.safe_load_all(cluster("kustomize", str(manifests.OVERLAYS / "local"))))
    for service in (o for o in objects if o["kind"] == "RayService"):
        config = service["spec"]["rayClusterConfig"]
        config["workerGroupSpecs"][0] |= {"replicas": workers, "minReplicas": workers}
        for group in (config["headGroupSpec"], *config["workerGroupSpecs"]):
            group["template"]["spec"]["containers"][0]["image"] = image
            group["template"]["metadata"].setdefault("annotations", {})["recognition/version"] = version
        if workers > 1:
            serve = yaml.safe_load(service["spec"]["serveConfigV2"])
            serve["applications"][0]["deployments"][0] |= {"num_replicas": workers, "max_replicas_per_node": 1}
            service["spec"]["serveConfigV2"] = yaml.safe_dump(serve, sort_keys=False)
    return objects
