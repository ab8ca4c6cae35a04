"""Rules against lost requests: during updates, upgrades and evictions, and through timeouts that are too short."""

from __future__ import annotations

import re
from collections.abc import Iterator

from serve_app.ops.overlay import Finding, Overlay, max_replicas, parse_quantity

DRAIN_S = 30  # RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S of Ray 2.60


def timeouts(overlay: Overlay) -> Iterator[Finding]:
    """Serve, a stopping replica and a stopping pod must all wait longer than the longest request (timeout_s)."""
    longest = overlay.args["timeout_s"]
    if overlay.serve["http_options"]["request_timeout_s"] <= longest:
        why = f"Serve times out before the application does (timeout_s is {longest} s)"
        yield overlay.finding("request_timeout_s", why, "set request_timeout_s above timeout_s")
    for deployment in overlay.deployments:
        if deployment.get("graceful_shutdown_timeout_s", 20) <= longest:
            why = f"Serve stops {deployment['name']} replicas during requests, which may take {longest} s (ray#64181)"
            yield overlay.finding("graceful_shutdown_timeout_s", why, "set graceful_shutdown_timeout_s above timeout_s")
    for pod in overlay.pods()[1:]:
        hook = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["", "0"])
        needed = int(hook[1]) + DRAIN_S + longest
        if pod.get("terminationGracePeriodSeconds", 30) <= needed:
            why = f"A pod is killed before its preStop hook, Ray's drain and the longest request end ({needed} s)"
            yield overlay.finding("terminationGracePeriodSeconds", why, f"set it above {needed}")


def load_balancer(overlay: Overlay) -> Iterator[Finding]:
    """Serve must not close connections that an Application Load Balancer still uses."""
    deregistration_s = 0
    for ingress in overlay.kind("Ingress"):
        annotations = ingress["metadata"].get("annotations", {})
        attributes = dict(re.findall(r"([\w.]+)=(\d+)", " ".join(annotations.values())))
        deregistration_s = int(attributes.get("deregistration_delay.timeout_seconds", 300))
        idle_s = int(attributes.get("idle_timeout.timeout_seconds", 60))
        if overlay.serve["http_options"]["keep_alive_timeout_s"] <= idle_s:
            why = "Serve closes idle connections that the load balancer still uses, and the load balancer answers 502"
            fix = f"set keep_alive_timeout_s above the load balancer's idle timeout ({idle_s} s)"
            yield overlay.finding("keep_alive_timeout_s", why, fix)
    needed = deregistration_s + overlay.args["timeout_s"]
    if overlay.service.get("rayClusterDeletionDelaySeconds", 60) <= needed:
        why = "The old cluster is deleted while the load balancer still sends it requests (kuberay#4799)"
        yield overlay.finding("rayClusterDeletionDelaySeconds", why, f"set it above {needed}")


def updates(overlay: Overlay) -> Iterator[Finding]:
    """An update in place must start new replicas before it stops old ones, and needs room for them.

    Without room it waits until the load falls, as measured in loadtests/RESULTS.md.
    """
    for deployment in overlay.deployments:
        if not deployment.get("max_surge_percent"):
            why = f"An update in place stops replicas of {deployment['name']} before new ones are ready (ray#66252)"
            yield overlay.finding(deployment["name"], why, "set max_surge_percent: 100")
        if max_replicas(deployment) >= overlay.replicas_per_worker(deployment) * overlay.workers["maxReplicas"]:
            why = f"{deployment['name']} may fill every worker, and an update in place then waits until the load falls"
            yield overlay.finding("maxReplicas", why, "allow one more worker, or fewer replicas")


def upgrades(overlay: Overlay) -> Iterator[Finding]:
    """A `NewCluster` upgrade needs nodes for a second cluster, and waits for ever without them (kuberay#5088)."""
    resource = "nvidia.com/gpu" if "nvidia.com/gpu" in overlay.worker_resources["requests"] else "cpu"
    needed = 2 * parse_quantity(overlay.worker_resources["requests"][resource]) * overlay.workers["maxReplicas"]
    pools = [pool["spec"].get("limits", {}) for pool in overlay.kind("NodePool")]
    limits = [parse_quantity(str(limit[resource])) for limit in pools if resource in limit]
    if limits and sum(limits) < needed:  # Karpenter: a pool without limits is unlimited
        why = f"Upgrades hang: the node pools cannot hold two clusters' workers, {needed:g} {resource} (kuberay#5088)"
        yield overlay.finding("limits", why, f"set limits of at least {needed:g} {resource}")


def disruptions(overlay: Overlay) -> Iterator[Finding]:
    """Kubernetes must be able to evict workers, but not all at once."""
    budgets = [b["spec"] for b in overlay.kind("PodDisruptionBudget")]
    if not budgets:
        why = "Without a PodDisruptionBudget, node drains may evict all workers at once (kuberay#5004)"
        yield overlay.finding("kind", why, "add a PodDisruptionBudget")
    if any("maxUnavailable" in b or "%" in str(b.get("minAvailable")) for b in budgets):
        why = (
            "Kubernetes allows no eviction: maxUnavailable and percentages need a scale subresource, "
            "which a RayCluster does not have (kuberay#2662)"
        )
        yield overlay.finding("maxUnavailable", why, "use an integer minAvailable")
    fewest = overlay.workers["minReplicas"]
    if any(isinstance(b.get("minAvailable"), int) and b["minAvailable"] >= fewest for b in budgets):
        why = f"minAvailable is not below minReplicas ({fewest}): no eviction is allowed, and a node drain never ends"
        yield overlay.finding("minAvailable", why, "set minAvailable below minReplicas")


RULES = (timeouts, load_balancer, updates, upgrades, disruptions)
