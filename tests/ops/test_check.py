"""Every rule finds its example, and the shipped overlays are clean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.__main__ import main
from serve_app.ops.check import RULES, check
from serve_app.ops.overlay import Overlay, read

Change = Callable[[Overlay], object]


@pytest.mark.parametrize("name", ["local", "staging", "production"])
def test_what_is_shipped_is_clean(rendered: dict[str, Path], name: str) -> None:
    assert check(read(rendered[name])) == []


def worker(d: Overlay) -> dict[str, Any]:
    return d.pods()[1]


def gate(d: Overlay) -> dict[str, Any]:
    return d.serve["applications"][1]


def note(d: Overlay, key: str, value: str) -> None:
    d.kind("Ingress")[0]["metadata"]["annotations"][f"alb.ingress.kubernetes.io/{key}"] = value


def drop(d: Overlay, kind: str) -> None:
    d.objects[:] = [o for o in d.objects if o["kind"] != kind]


def budget(d: Overlay, **spec: object) -> None:
    d.kind("PodDisruptionBudget")[0]["spec"] = spec


def pool(d: Overlay, number: int) -> dict[str, Any]:
    spec: dict[str, Any] = d.kind("NodePool")[number]["spec"]["template"]["spec"]
    return spec


def require(d: Overlay, key: str, *values: str) -> None:
    (found,) = (r for r in pool(d, 1)["requirements"] if r["key"] == key)
    found["values"] = list(values)


def on_cpus(d: Overlay, *families: str) -> None:
    """Moves the workers to nodes without a GPU."""
    d.worker_resources["limits"].pop("nvidia.com/gpu")
    worker(d)["nodeSelector"]["karpenter.sh/nodepool"] = "recognition-cpu"
    (found,) = (r for r in pool(d, 0)["requirements"] if r["key"] == "eks.amazonaws.com/instance-family")
    found.update(values=list(families)) if families else pool(d, 0)["requirements"].remove(found)


def sidecar(d: Overlay, image: str) -> None:
    worker(d)["initContainers"][0]["image"] = image


def egress(d: Overlay, port: int) -> None:
    for policy in d.kind("NetworkPolicy"):
        policy["spec"]["egress"] = [{"ports": [{"port": port}]}]


def rules(d: Overlay) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = d.kind("PrometheusRule")[0]["spec"]["groups"][0]["rules"]
    return found


def throughput(d: Overlay) -> None:
    d.args["placement"] = "apart"
    worker(d)["containers"][0]["env"].append({"name": "RAY_SERVE_THROUGHPUT_OPTIMIZED", "value": "1"})


EXAMPLES: list[tuple[str, str, Change]] = [
    ("timeouts", "times out before", lambda d: d.serve["http_options"].update(request_timeout_s=30)),
    ("timeouts", "during requests", lambda d: d.deployments[0].pop("graceful_shutdown_timeout_s")),
    ("timeouts", "killed before", lambda d: worker(d).update(terminationGracePeriodSeconds=60)),
    ("load_balancer", "closes idle connections", lambda d: d.serve["http_options"].update(keep_alive_timeout_s=5)),
    ("load_balancer", "still sends", lambda d: note(d, "target-group-attributes", "deregistration_delay.timeout_seconds=300")),
    ("load_balancer", "still sends", lambda d: d.service.pop("rayClusterDeletionDelaySeconds")),
    ("load_balancer", "all targets at once", lambda d: note(d, "target-type", "ip")),
    ("load_balancer", "no port on them", lambda d: d.service.pop("serveService")),
    ("load_balancer", "lost node", lambda d: note(d, "healthcheck-interval-seconds", "15")),
    ("rollout_gate", "Upgrades lose requests", lambda d: d.serve["applications"].pop()),
    ("rollout_gate", "opens before", lambda d: gate(d)["args"].update(healthy_s=4)),
    ("rollout_gate", "opens before", lambda d: worker(d)["containers"][0]["readinessProbe"].pop("periodSeconds") and gate(d)["args"].update(healthy_s=20)),
    ("rollout_gate", "on the head", lambda d: gate(d)["deployments"][0]["ray_actor_options"].pop("label_selector")),
    ("first_size", "too few for 9 replicas", lambda d: d.deployments[0]["autoscaling_config"].update(initial_replicas=9)),
    ("head_loss", "next head", lambda d: d.pods()[0].update(terminationGracePeriodSeconds=120)),
    ("batches", "two batches", lambda d: d.deployments[0].pop("max_ongoing_requests")),
    ("updates", "before new ones", lambda d: d.deployments[0].pop("max_surge_percent")),
    ("updates", "may fill every worker", lambda d: d.cluster["workerGroupSpecs"][0].update(maxReplicas=4)),
    ("replicas_fit", "never start", lambda d: d.cluster["workerGroupSpecs"][0].update(maxReplicas=1)),
    ("replicas_fit", "GPUs stay idle", lambda d: d.deployments[0]["ray_actor_options"].update(num_cpus=2, num_gpus=0.25)),
    ("upgrades", "Upgrades hang", lambda d: d.kind("NodePool")[1]["spec"]["limits"].update({"nvidia.com/gpu": 7})),
    ("upgrades", "Upgrades hang", lambda d: d.cluster["workerGroupSpecs"][0].update(maxReplicas=40)),
    ("token", "asks for no token", lambda d: d.cluster.pop("authOptions")),
    ("ray_ports", "other than Serve's", lambda d: d.kind("Ingress")[0]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"].update(number=8265)),
    ("ray_ports", "neither probes", lambda d: d.serve["http_options"].update(host="127.0.0.1")),
    ("disruptions", "all workers", lambda d: drop(d, "PodDisruptionBudget")),
    ("disruptions", "no eviction", lambda d: budget(d, maxUnavailable=1)),
    ("disruptions", "never ends", lambda d: d.cluster["workerGroupSpecs"][0].update(minReplicas=1)),
    ("disruptions", "evict 4 of 5", lambda d: d.cluster["workerGroupSpecs"][0].update(minReplicas=5)),
    ("placement", "The head", lambda d: d.pods()[0].pop("nodeSelector")),
    ("placement", "recognition-cpu admits every pod", lambda d: pool(d, 0).pop("taints")),
    ("placement", "stay Pending", lambda d: worker(d)["nodeSelector"].update({"karpenter.sh/nodepool": "recognition"})),
    ("placement", "stay Pending", lambda d: worker(d).pop("tolerations")),
    ("one_gpu", "several GPUs", lambda d: require(d, "eks.amazonaws.com/instance-gpu-count", "1", "4")),
    ("one_precision", "from node to node", lambda d: on_cpus(d, "m7i", "m7a")),
    ("one_precision", "from node to node", lambda d: on_cpus(d, "c5")),
    ("one_precision", "all CPUs", lambda d: on_cpus(d)),
    ("leaving", "last two minutes", lambda d: d.templates()[1]["metadata"].update(annotations={"karpenter.sh/do-not-disrupt": "true"})),
    ("leaving", "nodes of recognition-gpu may go at once", lambda d: pool(d, 1).update(terminationGracePeriod="1h10m")),
    ("leaving", "without a drain", lambda d: pool(d, 1).update(expireAfter="481h")),
    ("leaving", "without a drain", lambda d: pool(d, 1).update(expireAfter="Never")),
    ("sidecar_images", "fluent/fluent-bit:4.2.3", lambda d: sidecar(d, "fluent/fluent-bit:4.2.3")),
    ("sidecar_images", "Docker Hub", lambda d: sidecar(d, "docker.io/fluent/fluent-bit:4.2.3")),
    ("receivers", "reach nobody", lambda d: d.monitoring.pop("alertmanager")),
    ("receivers", "reach nobody", lambda d: d.monitoring["alertmanager"]["config"]["route"].update(receiver="null")),
    ("false_alarms", "kubeScheduler", lambda d: d.monitoring.pop("kubeScheduler")),
    ("runbooks", "cannot be opened", lambda d: rules(d)[-1]["annotations"].update(runbook_url="kuberay/monitoring/docs/runbooks.md")),
    ("traces", "every trace", lambda d: (d.serve.update(tracing_config={"enabled": True}), egress(d, 443))),
    ("api_keys", "asks for no key", lambda d: d.args.pop("api_keys_file")),
    ("api_keys", "No replica starts", lambda d: d.args.update(api_keys_file="/etc/keys/keys")),
    ("api_keys", "No replica starts", lambda d: worker(d)["containers"][0]["volumeMounts"][-1].update(subPath="keys")),
    ("internet_facing", "clear text", lambda d: note(d, "certificate-arn", "")),
    ("internet_facing", "how often", lambda d: note(d, "wafv2-acl-arn", "")),
    ("internet_facing", "TLS 1.0", lambda d: note(d, "ssl-policy", "ELBSecurityPolicy-2016-08")),
    ("internet_facing", "who called", lambda d: note(d, "load-balancer-attributes", "deletion_protection.enabled=true")),
    ("internet_facing", "by mistake", lambda d: note(d, "load-balancer-attributes", "access_logs.s3.enabled=true,access_logs.s3.bucket=b")),
    ("versions", "has Ray", lambda d: d.cluster.update(rayVersion="2.9.0")),
    ("versions", "different images", lambda d: worker(d)["containers"][0].update(image="image-recognition:other")),
    ("versions", "latest", lambda d: [pod["containers"][0].update(image="registry:5000/recognition") for pod in d.pods()]),
    ("versions", "environment variables", lambda d: worker(d)["containers"][0].pop("env")),
    ("unknown_keys", "max_ongoing_request", lambda d: d.deployments[0].update(max_ongoing_request=5)),
    ("unknown_keys", "ignores", lambda d: d.service.update(serviceUnhealthySecondThreshold=300)),
    ("head_runs_no_replicas", "starve", lambda d: d.cluster["headGroupSpec"]["rayStartParams"].clear()),
    ("throughput_messages", "4 MiB", throughput),
    ("dns", "block DNS", lambda d: egress(d, 443)),
    ("service_account", "cannot read", lambda d: worker(d).update(serviceAccountName="other")),
    ("firewall", "no photo", lambda d: setattr(d, "terraform", d.terraform.replace("SizeRestrictions", ""))),
    ("probes", "wget", lambda d: setattr(d, "dockerfile", "FROM python:3.11-slim")),
]  # fmt: skip


def test_every_rule_has_an_example() -> None:
    assert {rule.__name__ for rule in RULES} == {name for name, _, _ in EXAMPLES}


@pytest.mark.parametrize(("name", "why", "change"), EXAMPLES, ids=[f"{n}: {w}" for n, w, _ in EXAMPLES])
def test_a_rule_finds_its_example(rendered: dict[str, Path], name: str, why: str, change: Change) -> None:
    overlay_read = read(rendered["production"])
    (rule,) = (r for r in RULES if r.__name__ == name)
    assert list(rule(overlay_read)) == []
    change(overlay_read)
    found = [f for f in rule(overlay_read) if why in f.why]
    assert len(found) == 1
    assert found[0].fix
    assert found[0].line >= 1


def test_the_command_says_where_and_ends_with_1(
    rendered: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *map(str, rendered.values())]) == 0
    broken = tmp_path / "broken.yaml"
    text = rendered["local"].read_text()
    broken.write_text(text.replace("rayVersion: 2.60.0", "rayVersion: 2.9.0"))
    assert main(["check", str(broken)]) == 1
    line = next(n for n, t in enumerate(text.splitlines(), 1) if "rayVersion" in t)
    assert f"broken.yaml:{line}: The image has Ray" in capsys.readouterr().out
    (tmp_path / "empty.yaml").write_text(yaml.safe_dump({"kind": "Namespace"}))
    assert main(["check", str(tmp_path / "empty.yaml")]) == 1
    assert "no RayService" in capsys.readouterr().err
