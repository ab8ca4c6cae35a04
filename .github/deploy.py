"""`deploy.py MANIFESTS URL`: upgrades the service on a cluster under traffic, and rolls back if that fails.

    an alert with severity page fires already ──► nothing is changed
    apply under the drill's traffic ──► KubeRay's second cluster serves, the first is deleted ──► no page for WATCH_S
    else ──► the manifests that were applied before are applied again

The new cluster starts with as many workers and replicas as the old one has now. A rollback is another upgrade: KubeRay
starts another cluster, during an upgrade a third one. kubectl and its context are the caller's. Exits with 1 when a
request was lost, late or wrong, when more were refused than before, or when it rolled back. Golden photos need no step
here: a replica serves only after its weights pass their golden set, and the drill compares answers with those before.

`deploy.py MANIFESTS --carry` prints the manifests with the workers and replicas of now, for an upgrade by hand.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from serve_app.ops import overlay

ROOT = Path(__file__).resolve().parent.parent
NAME = "recognition"
RULES = (
    "/api/v1/namespaces/monitoring/services/monitoring-kube-prometheus-prometheus:9090/proxy/api/v1/rules?type=alert"
)
# Upgrade, watch and rollback end within the hour for which AWS grants the pipeline's role.
SETTLE_S, WATCH_S, EVERY_S = 1200.0, 600.0, 10.0
BLIND = 3  # queries of Prometheus in a row that may fail


def kubectl(*typed: str, stdin: str | None = None) -> str:
    """Runs kubectl and returns its output. Raises CalledProcessError."""
    command = ["kubectl", "--namespace", NAME, *typed]
    return subprocess.run(command, input=stdin, check=True, stdout=subprocess.PIPE, text=True).stdout


def applied(manifests: Path) -> str:
    """The last applied manifests of the file's objects that the cluster has. Raises SystemExit without a service."""
    present = kubectl("get", "--filename", str(manifests), "--ignore-not-found", "--output", "name").split()
    if f"rayservice.ray.io/{NAME}" not in present:
        sys.exit("no service to upgrade: create the first one by hand, see kuberay/README.md")
    return "---\n".join(kubectl("apply", "view-last-applied", name, "--output", "yaml") for name in present)


def workers() -> int:
    """The number of workers of the cluster that serves, without those of one that starts; 0 if none serves."""
    status = json.loads(kubectl("get", "rayservice", NAME, "--output", "json")).get("status", {})
    name = status.get("activeServiceStatus", {}).get("rayClusterName")
    if not name:
        return 0
    return int(json.loads(kubectl("get", "raycluster", name, "--output", "json"))["status"]["desiredWorkerReplicas"])


def carried(manifests: str, now: int) -> str:
    """The manifests, whose cluster starts with `now` workers and the replicas that fill them, within their limits.

    With its smallest size it would refuse requests: it gets all of them at once, before its autoscaler can add workers.
    """
    content = overlay.Overlay(Path(), manifests, "", "", "")
    content.workers["replicas"] = min(max(now, content.workers["minReplicas"]), content.workers["maxReplicas"])
    for deployment in content.deployments:
        if scaling := deployment.get("autoscaling_config"):
            filling = math.floor(content.replicas_per_worker(deployment) * content.workers["replicas"])
            scaling["initial_replicas"] = min(max(filling, scaling["min_replicas"]), scaling["max_replicas"])
    content.service["serveConfigV2"] = yaml.safe_dump(content.serve, sort_keys=False)
    return yaml.safe_dump_all(content.objects, sort_keys=False)


def settled() -> bool:
    """Whether KubeRay has processed the applied manifests and only one cluster is left, which serves."""
    service = json.loads(kubectl("get", "rayservice", NAME, "--output", "json"))
    status = service.get("status", {})
    conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
    return (
        status.get("observedGeneration") == service["metadata"]["generation"]
        and (conditions.get("Ready"), conditions.get("UpgradeInProgress")) == ("True", "False")
        and len(kubectl("get", "raycluster", "--output", "name").split()) == 1
    )


def settle() -> None:
    """Waits until the service has settled. After SETTLE_S it prints the cluster's objects and raises TimeoutError."""
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end:
        try:
            if settled():
                return
        except subprocess.CalledProcessError as error:
            print(f"trying again: {error}", flush=True)
        time.sleep(EVERY_S)
    print(kubectl("get", "rayservice,raycluster,pods", "--output", "wide"), flush=True)
    raise TimeoutError(f"the service has not settled on one cluster after {SETTLE_S:.0f} s")


def apply(manifests: str) -> None:
    """Applies manifests; returns once the old cluster is deleted, because that may lose requests (kuberay#4799)."""
    print(kubectl("apply", "--filename", "-", stdin=carried(manifests, workers())), end="", flush=True)
    settle()


def pages() -> list[str]:
    """The firing alerts with severity `page`. Raises LookupError when Prometheus has none, CalledProcessError."""
    groups = json.loads(kubectl("get", "--raw", RULES))["data"]["groups"]
    known = [rule for group in groups for rule in group["rules"] if rule["labels"].get("severity") == "page"]
    if not known:
        raise LookupError("Prometheus has no alert with severity page: errors that burn the budget would stay unseen")
    return [rule["name"] for rule in known if rule["state"] == "firing"]


def watch() -> None:
    """Watches for WATCH_S. Raises InterruptedError when a page fires, CalledProcessError when Prometheus fails."""
    end, blind = time.monotonic() + WATCH_S, 0
    while time.monotonic() < end:
        try:
            if firing := pages():
                raise InterruptedError(f"firing alerts: {', '.join(firing)}")
            blind = 0
        except subprocess.CalledProcessError:
            blind += 1
            if blind > BLIND:
                raise
        time.sleep(EVERY_S)


def drill(manifests: Path, url: str) -> None:
    """Runs the upgrade under the drill's traffic. Raises CalledProcessError when the upgrade or a request failed."""
    hook = f"'{sys.executable}' '{__file__}' --apply '{manifests}'"
    command = [sys.executable, "-m", "loadtests.drills.drill", "--url", url, "--times", "1", "--hook", hook]
    if key := os.environ.get("API_KEY"):
        command += ["--key", key]
    subprocess.run(command, check=True, cwd=ROOT)


def main(manifests: Path, url: str) -> None:
    """Upgrades and watches. On an error it rolls back, then raises the error. Raises SystemExit while a page fires."""
    if firing := pages():
        sys.exit(f"nothing was changed, firing alerts: {', '.join(firing)}")
    asked = overlay.Overlay(Path(), manifests.read_text(), "", "", "").args.get("api_keys_file")
    if asked and not os.environ.get("API_KEY"):
        sys.exit("nothing was changed: the service asks for a key, and the variable API_KEY is empty")
    before, good = carried(applied(manifests), workers()), False
    try:
        drill(manifests, url)
        watch()
        good = True
    finally:  # a cancelled job ends here too
        if not good:
            print("::error::rolling back to the manifests before", flush=True)
            print(kubectl("apply", "--filename", "-", stdin=before), end="", flush=True)
            settle()
            print("rolled back, and the service has settled", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", type=lambda name: Path(name).resolve())
    parser.add_argument("url", nargs="?")
    parser.add_argument("--apply", action="store_true", help="only apply and wait: no traffic, no rollback")
    parser.add_argument("--carry", action="store_true", help="only print what would be applied")
    args = parser.parse_args()
    os.environ["PATH"] = f"{os.environ['PATH']}{os.pathsep}{ROOT}/.venv/bin"  # the caller's kubectl, else `make`'s
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.apply:
        apply(args.manifests.read_text())
    elif args.carry:
        print(carried(args.manifests.read_text(), workers()))
    else:
        main(args.manifests, args.url or parser.error("needs a URL"))
