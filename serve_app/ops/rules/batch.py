"""Rules for batches: they give way to the service, stay apart from it, and go on after a loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from serve_app.ops.batch_job import BatchJob
from serve_app.ops.rendered import Finding

SERVICE = "recognition"  # app.kubernetes.io/name of the service's pods
SERVICE_PRIORITY = 0  # theirs, because they name no class


def priority(job: BatchJob) -> Iterator[Finding]:
    """Pods of the service must be able to take the place of a batch's, and a batch's nobody's."""
    classes = {one["metadata"]["name"]: one for one in job.kind("PriorityClass")}
    for name in {template["spec"].get("priorityClassName", "") for template in job.all_templates()}:
        chosen = classes.get(name, {})
        if chosen.get("value", SERVICE_PRIORITY) >= SERVICE_PRIORITY:
            why = "Pods of the service wait for this batch: a pod of it has no PriorityClass of the file below theirs"
            yield job.finding("priorityClassName", why, f"name a PriorityClass with a value below {SERVICE_PRIORITY}")
        elif chosen.get("preemptionPolicy") != "Never":
            why = "The batch may evict pods that have a lower priority still"
            yield job.finding("preemptionPolicy", why, "set preemptionPolicy: Never")


def apart(job: BatchJob) -> Iterator[Finding]:
    """No policy, disruption budget or metric of the service may count a batch's pods, and no alert their waiting."""
    labels = {one["metadata"].get("labels", {}).get("app.kubernetes.io/name", "") for one in job.all_templates()}
    if SERVICE in labels:
        why = "The service's network policy, disruption budget and metrics count the batch's pods"
        yield job.finding("app.kubernetes.io/name", why, f"use another label than {SERVICE}")
    chosen = {p["spec"]["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/name") for p in policies(job)}
    if not labels <= chosen:
        why = "Whoever reaches a pod of the batch can run code: no network policy of the file selects it"
        yield job.finding("podSelector", why, "give all pods the label that the policy selects")
    if not job.root["metadata"]["name"].startswith(f"{SERVICE}-batch"):
        why = "The alert NodePending fires when the batch's pods wait for spot nodes: it does not know their name"
        yield job.finding("kind", why, f"begin the RayJob's name with {SERVICE}-batch")


def policies(job: BatchJob) -> list[dict[str, Any]]:
    """The network policies that limit who may call."""
    return [one for one in job.kind("NetworkPolicy") if "Ingress" in one["spec"]["policyTypes"]]


def restricted(job: BatchJob) -> Iterator[Finding]:
    """The namespace enforces Pod Security `restricted`, and refuses each pod that does not meet it."""
    if "submitterPodTemplate" not in job.job and job.job.get("submissionMode") != "HTTPMode":
        why = "Pod Security refuses the submitter that KubeRay makes itself: it has no security context"
        yield job.finding("spec", why, "use K8sJobMode, and the submitterPodTemplate of kuberay/components/batch")
    for pod in (template["spec"] for template in job.all_templates()):
        user = pod.get("securityContext", {})
        containers = [one.get("securityContext", {}) for one in (*pod.get("initContainers", []), *pod["containers"])]
        if (
            not user.get("runAsNonRoot")
            or user.get("seccompProfile", {}).get("type") != "RuntimeDefault"
            or any(one.get("allowPrivilegeEscalation", True) for one in containers)
            or any("ALL" not in one.get("capabilities", {}).get("drop", []) for one in containers)
        ):
            why = f"Pod Security refuses a pod: {pod['containers'][0]['name']} or its pod does not meet `restricted`"
            yield job.finding("securityContext", why, "use the security contexts of kuberay/components/batch")


def goes_on(job: BatchJob) -> Iterator[Finding]:
    """A batch must begin again after a lost head, with all its workers, and must be able to pause."""
    tries = job.job.get("submitterConfig", {}).get("backoffLimit", 2)  # KubeRay's default
    if job.job.get("submissionMode", "K8sJobMode") != "K8sJobMode" or tries:
        why = "After a lost head, the run fails, or goes on without GPUs: it is submitted before the workers are there"
        yield job.finding("submissionMode", why, "keep the submission of kuberay/components/batch")
    if not job.job.get("backoffLimit"):
        why = "The run ends with the first head that is lost"
        yield job.finding("backoffLimit", why, "set backoffLimit: each try goes on where the last one stopped")
    if not job.job.get("shutdownAfterJobFinishes"):
        why = "The cluster costs money for ever after the run, and KubeRay refuses to suspend the run"
        yield job.finding("submissionMode", why, "set shutdownAfterJobFinishes: true")


RULES = (priority, apart, restricted, goes_on)
