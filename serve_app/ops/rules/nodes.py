"""Rules about nodes: which pods run on which, and how workers leave a node that goes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from serve_app.ops.overlay import Overlay
from serve_app.ops.rendered import Finding

CAPACITY, GPUS = "karpenter.sh/capacity-type", "eks.amazonaws.com/instance-gpu-count"
UNIT_H = {"h": 1.0, "m": 1 / 60, "s": 1 / 3600}
LIFE_H = 21 * 24  # Auto Mode ends every node at this age
FAMILIES = "eks.amazonaws.com/instance-family"
# What `precision: auto` means on them, see `engines/openvino.py`. Others are not alike: c5 has VNNI on some nodes only.
FASTEST = {"bfloat16": ("m7i", "c7i", "r7i"), "int8": ("m6i", "c6i", "r6i", "m7a", "c7a", "r7a")}
START_H = 0.25  # a new node, the image and a replica; the alert NodePending waits as long


def pools(overlay: Overlay) -> dict[str, dict[str, Any]]:
    """The node pools' templates by name."""
    return {pool["metadata"]["name"]: pool["spec"]["template"]["spec"] for pool in overlay.kind("NodePool")}


def values(pool: dict[str, Any], key: str) -> list[str]:
    """What a pool requires of a label by `In`; nothing where it takes any value."""
    return [v for r in pool["requirements"] if r["key"] == key and r["operator"] == "In" for v in r["values"]]


def hours(duration: str) -> float:
    """Converts a duration such as `1h30m`; `Never` is infinite."""
    parts = re.findall(r"(\d+)([hms])", duration)
    return sum(int(number) * UNIT_H[unit] for number, unit in parts) if parts else float("inf")


def placement(overlay: Overlay) -> Iterator[Finding]:
    """Spot nodes are for workers only, and the workers' node pool must exist and admit them."""
    known, (head, workers) = pools(overlay), overlay.pods()[:2]
    if not known:
        return
    if head.get("nodeSelector", {}).get(CAPACITY) != "on-demand":
        why = "The head may run on a spot node, and without a head nothing scales or is deployed"
        yield overlay.finding("headGroupSpec", why, f"set its nodeSelector: {{{CAPACITY}: on-demand}}")
    for name, pool in known.items():
        if "spot" in (values(pool, CAPACITY) or ["spot"]) and not pool.get("taints"):
            why = f"Prometheus, Loki and KubeRay's operator may run on spot nodes: {name} admits every pod"
            yield overlay.finding("requirements", why, "give the pool a taint that only workers tolerate")
    chosen = workers.get("nodeSelector", {}).get("karpenter.sh/nodepool", "")
    tolerated = {one.get("key") for one in workers.get("tolerations", [])}
    if chosen not in known or not {taint["key"] for taint in known[chosen].get("taints", [])} <= tolerated:
        why = f"Workers stay Pending: there is no node pool {chosen!r} whose taints they tolerate"
        yield overlay.finding("nodeSelector", why, "name a node pool, and tolerate its taints")


def one_gpu(overlay: Overlay) -> Iterator[Finding]:
    """A node must have as many GPUs as one worker takes: a larger one would be lost with all workers on it."""
    wanted = overlay.worker_resources.get("limits", {}).get("nvidia.com/gpu")
    pool = pools(overlay).get(overlay.pods()[1].get("nodeSelector", {}).get("karpenter.sh/nodepool", ""))
    if wanted and pool and values(pool, GPUS) != [str(wanted)]:
        why = "Karpenter may pack the workers on one node with several GPUs, and all are lost with it"
        yield overlay.finding("requirements", why, f'require {GPUS} In ["{wanted}"]')


def one_precision(overlay: Overlay) -> Iterator[Finding]:
    """Workers without a GPU must compute alike: `precision: auto` depends on the CPU of the node."""
    pool = pools(overlay).get(overlay.pods()[1].get("nodeSelector", {}).get("karpenter.sh/nodepool", ""))
    gpu = overlay.worker_resources.get("limits", {}).get("nvidia.com/gpu")
    if gpu or not pool or overlay.args.get("precision", "auto") != "auto":
        return
    families = values(pool, FAMILIES)
    if not families or not any(set(families) <= set(alike) for alike in FASTEST.values()):
        where = families or "all CPUs"
        why = f"Answers may differ from node to node: `precision: auto` is not known to be the same on {where}"
        alike = " or ".join(str(list(some)) for some in FASTEST.values())
        yield overlay.finding(FAMILIES, why, f"choose families from {alike}, or set `precision: float32`")


def leaving(overlay: Overlay) -> Iterator[Finding]:
    """Workers must leave a node at once when it is taken back, and one by one when all nodes expire together."""
    known, workers = pools(overlay), overlay.templates()[1]
    if "karpenter.sh/do-not-disrupt" in workers["metadata"].get("annotations", {}):
        why = "Karpenter does not drain the workers of a spot node in its last two minutes"
        yield overlay.finding("do-not-disrupt", why, "remove karpenter.sh/do-not-disrupt from the workers")
    needed = START_H * overlay.workers["maxReplicas"]
    for name, pool in known.items():
        grace = hours(pool.get("terminationGracePeriod", "24h"))
        if grace < needed:
            why = (
                f"All nodes of {name} may go at once: budgets do not limit expiry, and after terminationGracePeriod "
                "Karpenter deletes every pod that its disruption budget still holds"
            )
            yield overlay.finding("terminationGracePeriod", why, f"set it to at least {needed:g} h")
        if hours(pool.get("expireAfter", "336h")) + grace > LIFE_H:
            why = f"Auto Mode ends the nodes of {name} after 21 days without a drain"
            yield overlay.finding("expireAfter", why, f"set both to at most {LIFE_H} h together")


def disruptions(overlay: Overlay) -> Iterator[Finding]:
    """Kubernetes must be able to evict workers, but only one at a time."""
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
    for kept in (b["minAvailable"] for b in budgets if isinstance(b.get("minAvailable"), int)):
        if kept >= fewest:
            why = f"minAvailable is not below minReplicas ({fewest}): no eviction is allowed, and a drain never ends"
            yield overlay.finding("minAvailable", why, "set minAvailable to one less than minReplicas")
        elif kept < fewest - 1:
            why = f"Node drains may evict {fewest - kept} of {fewest} workers at once"
            yield overlay.finding("minAvailable", why, "set minAvailable to one less than minReplicas")


RULES = (placement, one_gpu, one_precision, leaving, disruptions)
