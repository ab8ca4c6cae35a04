"""Rules against lost requests: during updates and upgrades, and through timeouts that are too short."""

from __future__ import annotations

import re
from collections.abc import Iterator

from serve_app.ops.overlay import Overlay, max_replicas, parse_quantity, requested_resources
from serve_app.ops.rendered import Finding

DRAIN_S = 30  # RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S of Ray 2.60
CHECK_S = 5  # between two health checks of the load balancer
HEAD_GRACE_S = 30  # Kubernetes' default
ALB = "alb.ingress.kubernetes.io"


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
        hook = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["0"])
        needed = 2 * int(hook[-1]) + DRAIN_S + longest  # `drain` waits, and then as long again
        if pod.get("terminationGracePeriodSeconds", 30) <= needed:
            why = f"A pod is killed before its preStop hook, Ray's drain and the longest request end ({needed} s)"
            yield overlay.finding("terminationGracePeriodSeconds", why, f"set it above {needed}")


def load_balancer(overlay: Overlay) -> Iterator[Finding]:
    """Serve must not close connections that a load balancer still uses, and an upgrade must not change its targets."""
    deregistration_s = 0
    for ingress in overlay.kind("Ingress"):
        annotations = ingress["metadata"].get("annotations", {})
        if annotations.get(f"{ALB}/target-type", "ip") != "instance":
            why = "An upgrade changes all targets at once, and the load balancer answers 503 until it has checked them"
            yield overlay.finding("target-type", why, "set target-type: instance")
        elif overlay.service.get("serveService", {}).get("spec", {}).get("type") != "NodePort":
            why = "The load balancer's targets are nodes, but the Service has no port on them"
            yield overlay.finding("target-type", why, "set serveService: {spec: {type: NodePort}} in the RayService")
        if int(annotations.get(f"{ALB}/healthcheck-interval-seconds", 15)) > CHECK_S:
            why = "The load balancer sends requests to a lost node for too long"
            yield overlay.finding("target-type", why, f"set healthcheck-interval-seconds to at most {CHECK_S}")
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
    """An upgrade starts a second cluster, and a rollback during it a third. Without nodes they wait for ever.

    See kuberay#5088.
    """
    resource = "nvidia.com/gpu" if "nvidia.com/gpu" in overlay.worker_resources["requests"] else "cpu"
    needed = 3 * parse_quantity(overlay.worker_resources["requests"][resource]) * overlay.workers["maxReplicas"]
    pools = [pool["spec"].get("limits", {}) for pool in overlay.kind("NodePool")]
    limits = [parse_quantity(str(limit[resource])) for limit in pools if resource in limit]
    if limits and sum(limits) < needed:  # Karpenter: a pool without limits is unlimited
        why = f"Upgrades hang: the node pools cannot hold three clusters' workers, {needed:g} {resource} (kuberay#5088)"
        yield overlay.finding("limits", why, f"set limits of at least {needed:g} {resource}")


def rollout_gate(overlay: Overlay) -> Iterator[Finding]:
    """KubeRay must not point the Service at workers before their readiness probes have passed."""
    gates = [a for a in overlay.serve["applications"] if a["import_path"] == "serve_app.ops.rollout_gate:build"]
    if not gates:
        why = "Upgrades lose requests: KubeRay points the Service at workers whose readiness probe has not passed"
        yield overlay.finding("applications", why, "keep the application rollout-gate of kuberay/base/serve.yaml")
        return
    (gate,) = gates[0]["deployments"]
    probe = overlay.pods()[1]["containers"][0].get("readinessProbe", {"periodSeconds": 5})  # KubeRay's own
    if gates[0]["args"]["healthy_s"] <= 2 * probe.get("periodSeconds", 10):
        why = "The rollout gate opens before the readiness probe has passed"
        yield overlay.finding("healthy_s", why, "set healthy_s above twice the probe's periodSeconds")
    options = requested_resources(gate)
    labels = gate["ray_actor_options"].get("label_selector", {})
    if not options["num_cpus"] and labels.get("ray.io/node-group") != overlay.workers["groupName"]:
        why = "Ray may place the rollout gate on the head, where it proves nothing"
        yield overlay.finding("label_selector", why, "set label_selector to the worker group's ray.io/node-group")


def first_size(overlay: Overlay) -> Iterator[Finding]:
    """The workers that a new cluster starts with must hold the replicas that it starts with."""
    for deployment in overlay.deployments:
        scaling = deployment.get("autoscaling_config") or {}
        first = scaling.get("initial_replicas") or scaling.get("min_replicas") or deployment.get("num_replicas") or 1
        if first > overlay.replicas_per_worker(deployment) * overlay.workers["replicas"]:
            why = f"A new cluster starts with {overlay.workers['replicas']} workers, too few for {first} replicas"
            yield overlay.finding("replicas", why, "start with more workers: `replicas` of the worker group")


def head_loss(overlay: Overlay) -> Iterator[Finding]:
    """The next head must start soon after one is lost: nothing is deployed or scaled without it."""
    if overlay.pods()[0].get("terminationGracePeriodSeconds", 30) > HEAD_GRACE_S:
        why = "KubeRay starts the next head only when the lost one has ended, and its autoscaler takes all of the grace"
        yield overlay.finding("headGroupSpec", why, f"set its terminationGracePeriodSeconds to at most {HEAD_GRACE_S}")


def sidecar_images(overlay: Overlay) -> Iterator[Finding]:
    """A worker starts only when the images of its sidecars are there, so they must not come from Docker Hub."""
    sidecars = [c for pod in overlay.pods() for c in (*pod.get("initContainers", []), *pod["containers"][1:])]
    for image in sorted({container["image"] for container in sidecars}):
        host, slash, _ = image.partition("/")
        if not slash or not re.search(r"[.:]", host) or host.endswith("docker.io"):
            why = f"No worker starts while Docker Hub refuses {image}: it limits the pulls of a NAT gateway's address"
            yield overlay.finding("initContainers", why, "copy the image to your registry, and set newName in `images`")


RULES = (timeouts, load_balancer, updates, upgrades, rollout_gate, first_size, head_loss, sidecar_images)
