"""`deploy.py MANIFESTS URL`: upgrades the service on a cluster under traffic, or puts back what was there.

    a page fires already ──► nothing is touched
    apply under the drill's traffic ──► KubeRay's second cluster serves, the first is deleted ──► no page for WATCH_S
    else ──► what was applied before is applied again

While the upgrade is under way KubeRay then drops the second cluster; later it is an upgrade like any other. kubectl and
its context are the caller's. Exit code 1 when anything was lost, late, wrong or put back. Golden photos need no step:
no replica serves before its weights have passed theirs, and the drill holds answers against those before the upgrade.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "recognition"
RULES = (
    "/api/v1/namespaces/monitoring/services/monitoring-kube-prometheus-prometheus:9090/proxy/api/v1/rules?type=alert"
)
# Upgrade, watch and way back end within the hour for which AWS lends the pipeline's role.
SETTLE_S, WATCH_S, EVERY_S = 1200.0, 600.0, 10.0
BLIND = 3  # times in a row that Prometheus may fail to answer


def kubectl(*typed: str, stdin: str | None = None) -> str:
    """Its output. Raises CalledProcessError."""
    command = ["kubectl", "--namespace", NAME, *typed]
    return subprocess.run(command, input=stdin, check=True, stdout=subprocess.PIPE, text=True).stdout


def applied(manifests: Path) -> str:
    """What was applied last of each object in the file that the cluster has. Raises SystemExit without a service."""
    there = kubectl("get", "--filename", str(manifests), "--ignore-not-found", "--output", "name").split()
    if f"rayservice.ray.io/{NAME}" not in there:
        sys.exit("no service to upgrade: the first one is made by hand, see kuberay/README.md")
    return "---\n".join(kubectl("apply", "view-last-applied", name, "--output", "yaml") for name in there)


def settled() -> bool:
    """Whether KubeRay has seen what was applied, and one cluster is left, which serves it."""
    service = json.loads(kubectl("get", "rayservice", NAME, "--output", "json"))
    status = service.get("status", {})
    conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
    return (
        status.get("observedGeneration") == service["metadata"]["generation"]
        and (conditions.get("Ready"), conditions.get("UpgradeInProgress")) == ("True", "False")
        and len(kubectl("get", "raycluster", "--output", "name").split()) == 1
    )


def settle() -> None:
    """Waits for that. Raises TimeoutError, and prints what there is instead."""
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end:
        try:
            if settled():
                return
        except subprocess.CalledProcessError as error:
            print(f"asking again: {error}", flush=True)
        time.sleep(EVERY_S)
    print(kubectl("get", "rayservice,raycluster,pods", "--output", "wide"), flush=True)
    raise TimeoutError(f"not one cluster that serves after {SETTLE_S:.0f} s")


def apply(manifests: Path) -> None:
    """Returns when the old cluster is gone, too: deleting it loses requests, if anything does (kuberay#4799)."""
    print(kubectl("apply", "--filename", str(manifests)), end="", flush=True)
    settle()


def pages() -> list[str]:
    """The alerts with severity `page` that fire. Raises LookupError where Prometheus knows none, CalledProcessError."""
    groups = json.loads(kubectl("get", "--raw", RULES))["data"]["groups"]
    known = [rule for group in groups for rule in group["rules"] if rule["labels"].get("severity") == "page"]
    if not known:
        raise LookupError("Prometheus has no alert with severity page: nothing would tell that errors burn the budget")
    return [rule["name"] for rule in known if rule["state"] == "firing"]


def watch() -> None:
    """Raises InterruptedError when a page fires, CalledProcessError when Prometheus stays silent."""
    end, blind = time.monotonic() + WATCH_S, 0
    while time.monotonic() < end:
        try:
            if firing := pages():
                raise InterruptedError(f"fires: {', '.join(firing)}")
            blind = 0
        except subprocess.CalledProcessError:
            blind += 1
            if blind > BLIND:
                raise
        time.sleep(EVERY_S)


def drill(manifests: Path, url: str) -> None:
    """The upgrade under traffic. Raises CalledProcessError when it, or a request, failed."""
    hook = f"'{sys.executable}' '{__file__}' --apply '{manifests}'"
    typed = [sys.executable, "-m", "loadtests.drill", "--url", url, "--times", "1", "--hook", hook]
    if key := os.environ.get("API_KEY"):
        typed += ["--key", key]
    subprocess.run(typed, check=True, cwd=ROOT)


def main(manifests: Path, url: str) -> None:
    """Raises what went wrong, after what was there before has been put back."""
    if firing := pages():
        sys.exit(f"not now, it fires: {', '.join(firing)}")
    before, good = applied(manifests), False
    try:
        drill(manifests, url)
        watch()
        good = True
    finally:  # a cancelled job, too
        if not good:
            print("::error::puts back what was there before", flush=True)
            print(kubectl("apply", "--filename", "-", stdin=before), end="", flush=True)
            settle()
            print("put back, and it serves", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", type=lambda name: Path(name).resolve())
    parser.add_argument("url", nargs="?")
    parser.add_argument("--apply", action="store_true", help="only apply and wait: no traffic, no way back")
    asked = parser.parse_args()
    os.environ["PATH"] = f"{os.environ['PATH']}{os.pathsep}{ROOT}/.venv/bin"  # the caller's kubectl, else `make`'s
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if asked.apply:
        apply(asked.manifests)
    else:
        main(asked.manifests, asked.url or parser.error("which URL?"))
