"""`python -m serve_app check`: what is legal alone and wrong together.

It looks at an overlay, the Serve configuration inside, the lock, the Dockerfile and Terraform.

A rule is a function of a `Deployed`; it yields findings. Each says what will happen, where that was seen, and the cure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from serve_app import configuration, switches
from serve_app.deployed import Deployed, Finding, asked, cores, most
from serve_app.weights import ROOT

DRAIN_S = 30  # RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S of Ray 2.60
MESSAGE_BYTES = 4 * 2**20  # gRPC's largest message between replicas in throughput mode
FIREWALL_BYTES = 8192  # SizeRestrictions_BODY of AWSManagedRulesCommonRuleSet
STALE = ("serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold")


def timeouts(d: Deployed) -> Iterator[Finding]:
    """What a client waits for < what stops a replica < what stops its pod < what deletes its cluster."""
    longest = d.args["timeout_s"]
    if d.serve["http_options"]["request_timeout_s"] <= longest:
        yield d.found(
            "request_timeout_s", f"Serve gives up before the application's {longest} s", "more than timeout_s"
        )
    for deployment in d.deployments:
        if deployment.get("graceful_shutdown_timeout_s", 20) <= longest:
            why = f"{deployment['name']} is stopped with requests of up to {longest} s in it (ray#64181)"
            yield d.found("graceful_shutdown_timeout_s", why, "more than timeout_s")
    for pod in d.pods()[1:]:
        hook = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["", "0"])
        needed = int(hook[1]) + DRAIN_S + longest
        if pod.get("terminationGracePeriodSeconds", 30) <= needed:
            why = f"a pod is killed before its preStop, Ray's drain and the longest request are over ({needed} s)"
            yield d.found("terminationGracePeriodSeconds", why, f"more than {needed}")


def load_balancer(d: Deployed) -> Iterator[Finding]:
    """What an ALB keeps must not be closed under it."""
    leaves = 0
    for ingress in d.kind("Ingress"):
        notes = ingress["metadata"].get("annotations", {})
        attributes = dict(re.findall(r"([\w.]+)=(\d+)", " ".join(notes.values())))
        leaves = int(attributes.get("deregistration_delay.timeout_seconds", 300))
        if d.serve["http_options"]["keep_alive_timeout_s"] <= int(attributes.get("idle_timeout.timeout_seconds", 60)):
            why = "the load balancer meets connections that Serve has closed, and answers 502"
            yield d.found("keep_alive_timeout_s", why, "longer than the load balancer's idle timeout")
    if d.service.get("rayClusterDeletionDelaySeconds", 60) <= leaves + d.args["timeout_s"]:
        why = "the old cluster is deleted while the load balancer still sends it requests (kuberay#4799)"
        yield d.found("rayClusterDeletionDelaySeconds", why, f"more than {leaves + d.args['timeout_s']}")


def batches(d: Deployed) -> Iterator[Finding]:
    """A replica must be allowed to hold the batches it forms."""
    for deployment in d.deployments:
        size = (deployment.get("user_config") or {}).get("max_batch_size", 1)
        if deployment.get("max_ongoing_requests", 5) < 2 * size:
            why = f"{deployment['name']} never holds two batches of {size}; Serve's default of 5 caps them"
            yield d.found("max_ongoing_requests", why, f"at least {2 * size}")


def updates(d: Deployed) -> Iterator[Finding]:
    """An update in place must start before it stops, and have where (seen, loadtests/RESULTS.md)."""
    for deployment in d.deployments:
        if not deployment.get("max_surge_percent"):
            why = f"an update stops replicas of {deployment['name']} before new ones are up (ray#66252)"
            yield d.found(deployment["name"], why, "max_surge_percent: 100")
        if most(deployment) >= d.places(deployment) * d.workers["maxReplicas"]:
            why = f"{deployment['name']} may fill every worker: an update in place then waits until the load falls"
            yield d.found("maxReplicas", why, "one worker more, or fewer replicas")


def sizes(d: Deployed) -> Iterator[Finding]:
    """All replicas must find a place, and no GPU may idle for want of cores."""
    one, workers = d.booked(), d.workers["maxReplicas"]
    cpu, gpu = (sum(asked(x)[what] * most(x) for x in d.deployments) for what in one)
    if cpu > one["num_cpus"] * workers or gpu > one["num_gpus"] * workers:
        why = f"the replicas book {cpu:g} CPUs and {gpu:g} GPUs, {workers} workers have less: some never start"
        yield d.found("maxReplicas", why, "more or larger workers, or fewer replicas")
    if gpu and one["num_gpus"] and cpu / gpu > one["num_cpus"] / one["num_gpus"]:
        yield d.found("num_gpus", "GPUs idle: their workers have too few CPUs for the replicas", "smaller num_cpus")


def access(d: Deployed) -> Iterator[Finding]:
    """Who reaches Ray's ports runs code (CVE-2023-48022)."""
    if d.cluster.get("authOptions", {}).get("mode") != "token":
        yield d.found("rayClusterConfig", "Ray answers everybody who reaches its ports", "authOptions: {mode: token}")
    for ingress in d.kind("Ingress"):
        paths = [p["backend"]["service"] for rule in ingress["spec"]["rules"] for p in rule["http"]["paths"]]
        if any(path["port"].get("number") != d.serve["http_options"]["port"] for path in paths):
            yield d.found(
                "backend", "another port than Serve's is exposed; the dashboard runs code", "Serve's port only"
            )
    if d.serve["http_options"]["host"] != "0.0.0.0":  # noqa: S104
        yield d.found("host", "Serve listens where no probe and no client reaches it", "host: 0.0.0.0")


def disruptions(d: Deployed) -> Iterator[Finding]:
    """Evictions must be possible, one at a time."""
    budgets = [b["spec"] for b in d.kind("PodDisruptionBudget")]
    if not budgets:
        yield d.found("kind", "a node's drain may take all workers at once (kuberay#5004)", "a PodDisruptionBudget")
    if any("maxUnavailable" in b or "%" in str(b.get("minAvailable")) for b in budgets):
        why = "no eviction is ever allowed: a RayCluster has no scale subresource to count from (kuberay#2662)"
        yield d.found("maxUnavailable", why, "an integer minAvailable")
    fewest = d.workers["minReplicas"]
    if any(isinstance(b.get("minAvailable"), int) and b["minAvailable"] >= fewest for b in budgets):
        why = f"with {fewest} worker no eviction is allowed: a drain of its node never ends"
        yield d.found("minAvailable", why, "less than minReplicas")


def versions(d: Deployed) -> Iterator[Finding]:
    """One image, one Ray, and the switches that were measured."""
    if d.cluster["rayVersion"] != d.locked_ray:
        yield d.found("rayVersion", f"the image has Ray {d.locked_ray}", f'rayVersion: "{d.locked_ray}"')
    images = {pod["containers"][0]["image"] for pod in d.pods()}
    if len(images) > 1:
        yield d.found("image", "head and workers run different images, and Ray refuses the workers", "one image")
    if any(not re.search(r"@sha256:|:(?!latest$)[\w.-]+$", image) for image in images):
        yield d.found("image", "what `latest` is changes under a running cluster", "a tag, or better a digest")
    if any(d.env(pod) | switches.SWITCHES != d.env(pod) for pod in d.pods()):
        yield d.found("env", "Ray runs without the switches that were measured", "make manifests")


def keys(d: Deployed) -> Iterator[Finding]:
    """What nobody reads does nothing."""
    try:
        configuration.check(d.serve)
    except ValueError as error:
        yield d.found("serveConfigV2", f"Serve: {error}", "see serve_config.yaml")
    for key in STALE:
        if key in d.service:
            yield d.found(key, "KubeRay ignores it (kuberay#1685)", "take it out")


def front(d: Deployed) -> Iterator[Finding]:
    """What the Internet reaches has TLS and a firewall."""
    for ingress in d.kind("Ingress"):
        notes = ingress["metadata"].get("annotations", {})
        if notes.get("alb.ingress.kubernetes.io/scheme") != "internet-facing":
            continue
        if not notes.get("alb.ingress.kubernetes.io/certificate-arn"):
            yield d.found("scheme", "API keys cross the Internet in clear text", "certificate-arn, see account.yaml")
        if not notes.get("alb.ingress.kubernetes.io/wafv2-acl-arn"):
            yield d.found("scheme", "nothing limits who asks how often", "wafv2-acl-arn, see account.yaml")


def head(d: Deployed) -> Iterator[Finding]:
    """The control plane must not compete with a network."""
    if str(d.cluster["headGroupSpec"]["rayStartParams"].get("num-cpus")) != "0":
        yield d.found("headGroupSpec", "replicas run on the head and starve the control plane", 'num-cpus: "0"')


def messages(d: Deployed) -> Iterator[Finding]:
    """Throughput mode sends by gRPC, 4 MiB at most (ray#62982)."""
    apart, fast = d.args["placement"] == "apart", d.env(d.pods()[1]).get("RAY_SERVE_THROUGHPUT_OPTIMIZED") == "1"
    if apart and fast and d.args["max_body_bytes"] > MESSAGE_BYTES:
        yield d.found("RAY_SERVE_THROUGHPUT_OPTIMIZED", "photos of more than 4 MiB end as 500", "without it")


def probes(d: Deployed) -> Iterator[Finding]:
    """KubeRay's probes are shell commands in the image."""
    if "slim" in d.dockerfile and "wget" not in d.dockerfile:
        why = "KubeRay's probes call wget, which a slim image lacks: no pod is ever ready"
        yield Finding(ROOT / "Dockerfile", 1, why, "apt-get install wget")


def upgrades(d: Deployed) -> Iterator[Finding]:
    """`NewCluster` needs a second cluster's nodes beside the first's, or waits for them for ever (kuberay#5088)."""
    resource = "nvidia.com/gpu" if "nvidia.com/gpu" in d.room["requests"] else "cpu"
    needed = 2 * cores(d.room["requests"][resource]) * d.workers["maxReplicas"]
    limits = [pool["spec"].get("limits", {}) for pool in d.kind("NodePool")]  # none is no limit, as Karpenter has it
    room = [cores(str(limit[resource])) for limit in limits if resource in limit]
    if room and sum(room) < needed:
        why = f"the node pools have no room for the workers of two clusters, {needed:g} {resource}: upgrades hang"
        yield d.found("limits", why, f"{resource} of at least {needed:g}")


def names(d: Deployed) -> Iterator[Finding]:
    """A policy for egress shuts out DNS unless it says otherwise."""
    policies = [p["spec"] for p in d.kind("NetworkPolicy") if "Egress" in p["spec"].get("policyTypes", [])]
    ports = [port.get("port") for p in policies for rule in p.get("egress", []) for port in rule.get("ports", [])]
    if policies and 53 not in ports:
        yield d.found("egress", "no pod finds another by its name: workers never join the head", "port 53, UDP and TCP")


def account(d: Deployed) -> Iterator[Finding]:
    """What Terraform makes is for the names that the manifests use."""
    pod = d.pods()[1].get("serviceAccountName", "default")
    if not re.search(rf'service_account\s*= "{pod}"', d.terraform):
        why = f"Terraform gives the service account {pod} no role: weights in S3 are forbidden to it"
        yield d.found("serviceAccountName", why, "the one in terraform/eks.tf")
    if d.kind("Ingress") and d.args["max_body_bytes"] > FIREWALL_BYTES and "SizeRestrictions" not in d.terraform:
        why = f"the firewall's core rule set blocks bodies of more than {FIREWALL_BYTES} bytes: no photo comes through"
        yield Finding(ROOT / "terraform" / "firewall.tf", 1, why, "SizeRestrictions_BODY set to count")


RULES: tuple[Callable[[Deployed], Iterator[Finding]], ...] = (
    timeouts, load_balancer, batches, updates, sizes, upgrades, access, disruptions, versions, keys, head, messages,
    names, front, probes, account,
)  # fmt: skip


def check(deployed: Deployed) -> list[Finding]:
    """Every finding of every rule."""
    return [finding for rule in RULES for finding in rule(deployed)]
