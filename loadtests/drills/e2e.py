"""`make e2e CONTEXT=… IMAGE=…`: runs the local overlay on a cluster of the kubeconfig, and upgrades it under traffic.

Traffic goes through the API server's proxy to the Service. The proxy follows the Service from the old cluster to the
new one; a port-forward stays with one pod. Exits with 1 when a request was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import yaml

from loadtests.drills.drill import content_of, observe, sha256
from loadtests.service import ROOT
from loadtests.traffic import Traffic
from serve_app.ops import manifests
from serve_app.vision import sample_photos

NAMESPACE, NAME = "recognition", "recognition"
READY_S = 900  # long enough for two clusters on two cores
SERVICE = f"/api/v1/namespaces/{NAMESPACE}/services/{NAME}-serve-svc:8000/proxy"


class Cluster:
    """Runs kubectl in one context."""

    def __init__(self, context: str) -> None:
        path = f"{ROOT}/.venv/bin{os.pathsep}{os.environ['PATH']}"
        self._typed = [shutil.which("kubectl", path=path) or "kubectl", "--context", context]

    def __call__(self, *typed: str, stdin: str | None = None, check: bool = True) -> str:
        """Runs kubectl and returns its output. Raises CalledProcessError."""
        return subprocess.run(
            [*self._typed, *typed], input=stdin, check=check, stdout=subprocess.PIPE, text=True
        ).stdout

    @contextmanager
    def proxy(self) -> Iterator[str]:
        """Yields the URL of the Service behind the API server's proxy."""
        process = subprocess.Popen([*self._typed, "proxy", "--port=0"], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout
            yield f"http://{process.stdout.readline().split()[-1]}{SERVICE}"  # "Starting to serve on 127.0.0.1:…"
        finally:
            process.terminate()
            process.wait(10)

    def condition(self, kind: str) -> str:
        """The status of a condition of the RayService: `True`, `False` or empty."""
        got = json.loads(self("-n", NAMESPACE, "get", "rayservice", NAME, "-o", "json"))
        conditions = got.get("status", {}).get("conditions", [])
        return next((c["status"] for c in conditions if c["type"] == kind), "")

    def until(self, kind: str, status: str) -> None:
        """Waits until a condition of the RayService has a status. Raises TimeoutError."""
        self.wait(f"{kind} is {status}", lambda: self.condition(kind) == status)

    def wait(self, what: str, met: Callable[[], bool]) -> None:
        """Waits until `met()` is true. After READY_S it prints the cluster's objects and raises TimeoutError."""
        end = time.monotonic() + READY_S
        while not met():
            if time.monotonic() > end:
                print(self("-n", NAMESPACE, "get", "rayservice,raycluster,pods", "-o", "wide", check=False))
                raise TimeoutError(f"timed out after {READY_S} s, waiting until {what}")
            time.sleep(2)

    def clusters(self) -> int:
        """The number of RayClusters: two during an upgrade."""
        return len(self("-n", NAMESPACE, "get", "raycluster", "-o", "name").split())


def rendered(cluster: Cluster, image: str) -> list[dict[str, Any]]:
    """The objects of the local overlay, with another image."""
    manifests.write()
    objects = list(yaml.safe_load_all(cluster("kustomize", str(manifests.OVERLAYS / "local"))))
    for service in (o for o in objects if o["kind"] == "RayService"):
        config = service["spec"]["rayClusterConfig"]
        for group in (config["headGroupSpec"], *config["workerGroupSpecs"]):
            group["template"]["spec"]["containers"][0]["image"] = image
    return objects


def operator(cluster: Cluster, context: str) -> None:
    """Installs KubeRay's operator in the version of `make addons`, unless its CRDs exist."""
    if not cluster("get", "crd", "rayservices.ray.io", "--ignore-not-found", "-o", "name"):
        charts = (ROOT / "kuberay" / "addons" / "charts.txt").read_text().splitlines()
        name, namespace, chart, version, repository = next(
            c for c in charts if c.startswith("kuberay-operator")
        ).split()
        command = [f"{ROOT}/.venv/bin/helm", "--kube-context", context, "install", name, chart, "--version", version]
        command += ["--repo", repository, "--namespace", namespace, "--create-namespace", "--wait"]
        subprocess.run(command, check=True)


def upgrade(cluster: Cluster) -> None:
    """Changes the pod template, so KubeRay starts a second cluster. Returns once the first one is deleted."""
    value = {"name": "UPGRADED_AT", "value": str(int(time.time()))}
    head = "/spec/rayClusterConfig/headGroupSpec/template/spec/containers/0/env/-"
    patch = json.dumps([{"op": "add", "path": head, "value": value}])
    cluster("-n", NAMESPACE, "patch", "rayservice", NAME, "--type=json", "-p", patch)
    cluster.until("UpgradeInProgress", "True")
    cluster.until("UpgradeInProgress", "False")
    cluster.until("Ready", "True")
    cluster.wait("the old cluster is deleted", lambda: cluster.clusters() == 1)  # may lose requests (kuberay#4799)


def main(context: str, image: str) -> bool:
    """Deploys, upgrades and deletes the overlay; true when nothing was lost."""
    cluster = Cluster(context)
    operator(cluster, context)
    try:
        cluster("apply", "-f", "-", stdin=yaml.safe_dump_all(rendered(cluster, image)))
        cluster.until("Ready", "True")
        with cluster.proxy() as url:
            answer = httpx.post(f"{url}/v1/predict", files={"file": sample_photos.bus()}, timeout=60, trust_env=False)
            print(answer.raise_for_status().json()["images"][0]["results"], flush=True)
            traffic = Traffic(url, content_of())
            with traffic.flowing(closed=2, rate=2):
                bad = observe(traffic, "upgrade to a new cluster", lambda: upgrade(cluster), lambda: sha256(traffic))
        return not bad
    finally:
        cluster("delete", "namespace", NAMESPACE, "--ignore-not-found", check=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", required=True)
    parser.add_argument("--image", default="image-recognition:dev")
    args = parser.parse_args()
    sys.exit(not main(args.context, args.image))
