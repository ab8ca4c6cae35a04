"""`make e2e CONTEXT=… IMAGE=…`: runs the local overlay on a cluster of the kubeconfig, and upgrades it under traffic.

Two clients send known photos on new and on kept connections: one in a pod, by the Service's own address, and one
through the API server's proxy. The Service's endpoints are watched. Exits with 1 when an upgrade lost a request, or
left the Service without an endpoint. The other events are reported: kuberay/OPERATIONS.md says what they may lose.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import httpx
import yaml

from loadtests.drills.cluster import NAMESPACE, Cluster, dark, rendered
from loadtests.drills.observation import content_of, observe
from loadtests.service import ROOT
from loadtests.traffic import Traffic
from serve_app.vision import sample_photos

FAILED_S = 120.0  # how long a new version that cannot start is given
HOLD_S = 60.0  # the workers of a lost head end up to this much later


class Operator:
    """Changes and breaks the service. Each event returns once one cluster is left, which serves."""

    def __init__(self, cluster: Cluster, image: str, workers: int) -> None:
        self.cluster, self.image, self.workers = cluster, image, workers
        self.events: dict[str, Callable[[], None]] = {
            "upgrade": self.upgrade,
            "roll back during an upgrade": self.roll_back,
            "evict a worker": self.evict,
            "lose a worker": lambda: self.lose("worker"),
            "lose the head": lambda: self.lose("head"),
            "weights that do not exist": self.missing_weights,
            "image that does not exist": self.missing_image,
        }
        self._version = 0

    def apply(self, image: str = "", weights: str = "") -> None:
        """Applies the overlay. Each call without `weights` makes a new version of the pods."""
        self._version += not weights
        objects = rendered(self.cluster, image or self.image, self.workers, str(self._version))
        for service in (o["spec"] for o in objects if weights and o["kind"] == "RayService"):
            serve = yaml.safe_load(service["serveConfigV2"])
            serve["applications"][0]["args"]["weights"] = weights
            service["serveConfigV2"] = yaml.safe_dump(serve, sort_keys=False)
        self.cluster("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def settle(self) -> None:
        """Waits until one cluster is left, which serves."""
        self.cluster.wait("one cluster is left, which serves", self.cluster.settled)

    def start_upgrade(self, image: str = "") -> None:
        """Applies a new version, and returns when KubeRay has started its cluster."""
        self.apply(image)
        self.cluster.wait("the upgrade starts", lambda: self.cluster.conditions().get("UpgradeInProgress") == "True")

    def upgrade(self) -> None:
        """Upgrades the pods. Ends when the old cluster is deleted, which may lose requests (kuberay#4799)."""
        self.start_upgrade()
        self.settle()

    def roll_back(self) -> None:
        """Starts an upgrade, and applies another version while it runs."""
        self.start_upgrade()
        time.sleep(10)
        self.apply()
        self.settle()

    def evict(self) -> None:
        """Evicts a worker, as the drain of its node does."""
        self._replaced("worker", self._evict)

    def lose(self, node_type: str) -> None:
        """Deletes a pod without any grace, as when its node dies."""
        self._replaced(node_type, lambda pod: self.cluster("delete", "pod", pod, "--grace-period=0", "--force"))

    def missing_weights(self) -> None:
        """Deploys weights that do not exist, in place; then the good ones again."""
        self.apply(weights="models/none.pt")
        time.sleep(FAILED_S)
        self.apply(weights="auto")
        self.settle()

    def missing_image(self) -> None:
        """Starts an upgrade to an image that does not exist, and goes back."""
        self.start_upgrade("image-recognition:none")
        time.sleep(FAILED_S)
        self.apply()
        self.settle()

    def _evict(self, pod: str) -> None:
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}}
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
        self.cluster("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))

    def _replaced(self, node_type: str, end: Callable[[str], object]) -> None:
        """Ends a pod, and waits until it is replaced and the whole cluster serves.

        The conditions of the RayService stay true for a while, and the workers of a lost head end only after it: so all
        pods must have been ready for HOLD_S.
        """
        (lost, *_) = self.cluster.pods(node_type)
        end(lost)

        def replaced() -> bool:
            head, workers = self.cluster.pods("head"), self.cluster.pods("worker")
            serves = all(head.values()) and sum(workers.values()) >= self.workers
            return lost not in head | workers and serves and self.cluster.settled()

        self.cluster.wait(f"another {node_type} has joined, and all serve", replaced, hold_s=HOLD_S)


def install_operator(cluster: Cluster, chart: str) -> None:
    """Installs KubeRay's operator, unless its CRDs exist: `chart`, a file, or the chart of `make addons`."""
    if cluster("get", "crd", "rayservices.ray.io", "--ignore-not-found", "-o", "name"):
        return
    pinned = (ROOT / "kuberay" / "addons" / "charts.txt").read_text().splitlines()
    name, namespace, known, version, repository = next(c for c in pinned if c.startswith("kuberay-operator")).split()
    source = [chart] if chart else [known, "--version", version, "--repo", repository]
    command = [f"{ROOT}/.venv/bin/helm", "--kube-context", cluster.typed[-1], "install", name, *source]
    subprocess.run([*command, "--namespace", namespace, "--create-namespace", "--wait"], check=True)


def main(args: argparse.Namespace) -> bool:
    """Deploys, runs the events and deletes the overlay; true when the upgrades lost nothing.

    Touches nothing where the namespace exists: a service of somebody else may run there, or one that is being deleted.
    """
    cluster = Cluster(args.context)
    operator, good = Operator(cluster, args.image, args.workers), True
    if cluster("get", "namespace", NAMESPACE, "--ignore-not-found", "-o", "name"):
        print(f"error: {args.context} has a namespace {NAMESPACE}. It would be deleted at the end: delete it yourself.")
        return False
    install_operator(cluster, args.chart)
    try:
        operator.apply()
        operator.settle()
        with cluster.proxy() as url, cluster.client(args.image) as pod, cluster.endpoints() as endpoints:
            answer = httpx.post(f"{url}/v1/predict", files={"file": sample_photos.bus()}, timeout=60, trust_env=False)
            print(answer.raise_for_status().json()["images"][0]["results"], flush=True)
            traffic = Traffic(url, content_of())
            with traffic.flowing(closed=2, rate=2):
                for name in args.events * args.times:
                    good &= run(name, operator.events[name], traffic, pod, endpoints) or name != "upgrade"
        return good
    finally:
        cluster("delete", "namespace", NAMESPACE, "--ignore-not-found", check=False)


def run(
    name: str,
    event: Callable[[], None],
    traffic: Traffic,
    pod: subprocess.Popen[str],
    endpoints: list[tuple[float, int]],
) -> bool:
    """Runs one event under both clients; true when neither lost a request and the Service always had an endpoint.

    Raises ValueError when the client in the pod has ended.
    """
    assert pod.stdin
    assert pod.stdout
    began = time.monotonic()
    print(name, file=pod.stdin, flush=True)
    bad = observe(traffic, name, event, prefix="proxy  ")
    print("over", file=pod.stdin, flush=True)
    for line in pod.stdout:
        if line.startswith("observed "):
            break
        print(line, end="")
    else:
        raise ValueError("the client in the pod has ended")
    without = dark(endpoints, began, time.monotonic())
    print(f"       without an endpoint for {without:.1f} s", flush=True)
    return not bad and line == "observed 0\n" and not without


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", required=True)
    parser.add_argument("--image", default="image-recognition:dev")
    parser.add_argument("--times", type=int, default=1, help="how often each event runs")
    parser.add_argument("--events", nargs="+", default=["upgrade"], help="any of Operator.events")
    parser.add_argument("--workers", type=int, default=1, help="workers, each with one replica")
    parser.add_argument(
        "--chart", default="", help="a file with the operator's chart, where its repository is not reached"
    )
    sys.exit(not main(parser.parse_args()))
