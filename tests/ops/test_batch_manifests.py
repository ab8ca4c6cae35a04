"""The batch on Kubernetes as it would be applied: valid, apart from the service, and below it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from serve_app.__main__ import main, parser
from serve_app.ops import ray_environment
from serve_app.ops.batch_job import BatchJob
from serve_app.ops.check import BATCH_RULES, check
from serve_app.ops.overlay import parse_quantity, read
from tests.conftest import ROOT, kubectl, shared
from tests.ops.test_manifests import KUBERNETES

# The keys of RayJob's spec in KubeRay v1.7.0, ray-operator/config/crd/bases/ray.io_rayjobs.yaml, version v1.
SPEC = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus",
    "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "preRunningDeadlineSeconds",
    "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
    "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
LONGEST_NAME = 47  # MaxRayJobNameLength in ray-operator/controllers/ray/utils/constant.go
JOBS = sorted(path.name for path in (ROOT / "kuberay" / "jobs").iterdir())
NAME = "app.kubernetes.io/name"


@pytest.fixture(scope="module", params=[*JOBS, "gpu"])
def job(request: pytest.FixtureRequest, rendered: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each batch, and the one for production on GPUs."""
    assert rendered, "has written what is generated"
    folder = tmp_path_factory.mktemp("batch")
    paths = ("jobs/production", "components/batch/gpu")
    base, gpu = (os.path.relpath(ROOT / "kuberay" / path, folder.resolve()) for path in paths)
    content = {"kind": "Kustomization", "resources": [base], "components": [gpu]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    target = folder if request.param == "gpu" else ROOT / "kuberay" / "jobs" / request.param
    built = subprocess.run([kubectl(), "kustomize", str(target)], capture_output=True, check=True).stdout
    (folder / "batch.yaml").write_bytes(built)
    return folder / "batch.yaml"


def test_every_object_is_valid(job: Path) -> None:
    schema = json.loads(shared("schemas", "raycluster-ray-v1.json").read_text())["properties"]["spec"]
    for one in BatchJob.read(job).objects:
        if one["kind"] != "RayJob":
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
            continue
        assert set(one) == {"apiVersion", "kind", "metadata", "spec"}
        assert set(one["spec"]) <= SPEC
        assert len(one["metadata"]["name"]) <= LONGEST_NAME
        jsonschema.validate(one["spec"]["rayClusterSpec"], schema)
        with pytest.raises(jsonschema.ValidationError):  # a key that is not there
            jsonschema.validate(one["spec"]["rayClusterSpec"] | {"replicas": 1}, schema)
        template = {"backoffLimit": 0, "template": one["spec"]["submitterPodTemplate"]}
        submitter = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "submitter"}, "spec": template}
        kubernetes_validate.validate(submitter, KUBERNETES, strict=True)


def test_what_is_shipped_is_clean(job: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["check", "--pods", str(tmp_path / "pods.yml"), str(job)]) == 0
    assert "no findings" in capsys.readouterr().out
    pods = list(yaml.safe_load_all((tmp_path / "pods.yml").read_text()))
    assert [pod["spec"]["containers"][0]["name"] for pod in pods] == ["ray-head", "ray-worker", "submitter"]


def test_the_entrypoint_is_a_command_that_exists(job: Path) -> None:
    python, module, name, *typed = BatchJob.read(job).job["entrypoint"].split()
    assert (python, module, name) == ("python", "-m", "serve_app")
    assert parser().parse_args(typed).out.startswith("s3://")


def test_it_gives_way_to_the_service_and_takes_nobodys_place(job: Path, rendered: dict[str, Path]) -> None:
    batch = BatchJob.read(job)
    (priority,) = batch.kind("PriorityClass")
    assert {template["spec"]["priorityClassName"] for template in batch.all_templates()} == {
        priority["metadata"]["name"]
    }
    for file in rendered.values():
        service = read(file)
        assert not any("priorityClassName" in pod for pod in service.pods()), "so theirs is 0"
        assert not service.kind("PriorityClass")
    assert (-10 <= priority["value"] < 0, priority["preemptionPolicy"]) == (True, "Never")


def test_no_selector_of_the_service_takes_a_pod_of_the_batch(job: Path, rendered: dict[str, Path]) -> None:
    batch = BatchJob.read(job)
    (label,) = {template["metadata"]["labels"][NAME] for template in batch.all_templates()}
    for file in rendered.values():
        service = read(file)
        assert not service.kind("RayJob"), "no overlay applies a batch"
        for one in service.objects:
            spec = one.get("spec", {})
            for selector in (spec.get("selector"), spec.get("podSelector")):
                if isinstance(selector, dict) and "matchLabels" in selector:
                    assert selector["matchLabels"][NAME] != label
    (policy,) = batch.kind("NetworkPolicy")
    assert policy["spec"]["podSelector"]["matchLabels"] == {NAME: label}
    known = {(o["kind"], o["metadata"]["name"]) for file in rendered.values() for o in read(file).objects}
    assert not known & {(o["kind"], o["metadata"]["name"]) for o in batch.objects}


def test_the_policy_has_the_shape_of_the_services(job: Path, rendered: dict[str, Path]) -> None:
    """Less than the service's: no Serve port, no metrics, no Kubernetes API, no traces."""
    (batch,) = (one["spec"] for one in BatchJob.read(job).kind("NetworkPolicy"))
    (service,) = (one["spec"] for one in read(rendered["local"]).kind("NetworkPolicy"))
    service = json.loads(json.dumps(service).replace('/name": "recognition"', '/name": "recognition-batch"'))
    assert batch["policyTypes"] == service["policyTypes"] == ["Ingress", "Egress"]
    ports = {port["port"] for rule in batch["ingress"] for port in rule.get("ports", [])}
    assert ports == {8265}
    for rule in (*batch["ingress"], *batch["egress"]):
        rules = service["ingress"] + service["egress"]
        alike = [one for one in rules if {**one, "ports": 0} == {**rule, "ports": 0} or one == rule]
        assert any(all(port in one.get("ports", []) for port in rule.get("ports", [])) for one in alike)


def test_its_workers_have_a_node_pool_room_and_what_was_measured(job: Path, rendered: dict[str, Path]) -> None:
    batch, production = BatchJob.read(job), read(rendered["production"])
    pools = {pool["metadata"]["name"]: pool["spec"] for pool in production.kind("NodePool")}
    head, worker = batch.pods()
    pool = pools[worker["nodeSelector"]["karpenter.sh/nodepool"]]
    assert {taint["key"] for taint in pool["template"]["spec"]["taints"]} == {
        one["key"] for one in worker["tolerations"]
    }
    capacity = next(r for r in pool["template"]["spec"]["requirements"] if r["key"] == "karpenter.sh/capacity-type")
    assert worker["nodeSelector"].get("karpenter.sh/capacity-type", "on-demand") in capacity["values"]
    assert head["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}
    container = worker["containers"][0]
    resource = "nvidia.com/gpu" if "nvidia.com/gpu" in pool["limits"] else "cpu"
    asked = parse_quantity(container["resources"]["requests"][resource]) * batch.workers["replicas"]
    assert asked <= parse_quantity(str(pool["limits"][resource]))
    assert parse_quantity(container["resources"]["requests"]["cpu"]) >= 2, (
        "one network and its decoder (batch/pipeline.py)"
    )
    env = batch.env(worker)
    assert env == batch.env(head) == ray_environment.BATCH
    assert not [name for name in env if "SERVE" in name]
    assert f"\nray=={batch.cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()


def test_only_what_a_pod_writes_is_writable(job: Path) -> None:
    for template in BatchJob.read(job).all_templates():
        pod = template["spec"]
        assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"])
        assert all(one["securityContext"]["readOnlyRootFilesystem"] for one in pod["containers"])
        assert not pod["automountServiceAccountToken"]


def submitter(d: BatchJob) -> dict[str, Any]:
    spec: dict[str, Any] = d.job["submitterPodTemplate"]["spec"]
    return spec


EXAMPLES: list[tuple[str, str, Callable[[BatchJob], object]]] = [
    ("priority", "wait for this batch", lambda d: d.kind("PriorityClass")[0].update(value=0)),
    ("priority", "wait for this batch", lambda d: d.pods()[1].pop("priorityClassName")),
    ("priority", "may evict", lambda d: d.kind("PriorityClass")[0].pop("preemptionPolicy")),
    ("apart", "disruption budget", lambda d: d.templates()[1]["metadata"].update(labels={NAME: "recognition"})),
    ("apart", "no network policy", lambda d: d.objects.remove(d.kind("NetworkPolicy")[0])),
    ("apart", "NodePending", lambda d: d.root["metadata"].update(name="street")),
    ("restricted", "does not meet", lambda d: submitter(d).pop("securityContext")),
    ("restricted", "does not meet", lambda d: d.pods()[1]["containers"][0]["securityContext"].pop("capabilities")),
    ("restricted", "makes itself", lambda d: d.job.pop("submitterPodTemplate")),
    ("goes_on", "without GPUs", lambda d: d.job.update(submissionMode="HTTPMode")),
    ("goes_on", "without GPUs", lambda d: d.job.pop("submitterConfig")),
    ("goes_on", "first head", lambda d: d.job.update(backoffLimit=0)),
    ("goes_on", "for ever", lambda d: d.job.pop("shutdownAfterJobFinishes")),
    ("token", "asks for no token", lambda d: d.cluster.pop("authOptions")),
    ("dns", "block DNS", lambda d: d.kind("NetworkPolicy")[0]["spec"].update(egress=[])),
    ("service_account", "no role", lambda d: d.pods()[1].update(serviceAccountName="batch")),
    ("versions", "latest", lambda d: [pod["containers"][0].update(image="recognition:latest") for pod in d.pods()]),
    ("versions", "environment variables", lambda d: d.pods()[1]["containers"][0].pop("env")),
    ("head_runs_no_replicas", "starve", lambda d: d.cluster["headGroupSpec"]["rayStartParams"].clear()),
    ("probes", "wget", lambda d: setattr(d, "dockerfile", "FROM python:3.11-slim")),
]  # fmt: skip


def test_every_rule_has_an_example() -> None:
    assert {rule.__name__ for rule in BATCH_RULES} == {name for name, _, _ in EXAMPLES}


@pytest.mark.parametrize(("name", "why", "change"), EXAMPLES, ids=[f"{n}: {w}" for n, w, _ in EXAMPLES])
def test_a_rule_finds_its_example(job: Path, name: str, why: str, change: Callable[[BatchJob], object]) -> None:
    batch = BatchJob.read(job)
    assert check(batch) == []
    change(batch)
    (rule,) = (r for r in BATCH_RULES if r.__name__ == name)
    assert len([found for found in rule(batch) if why in found.why and found.fix]) == 1
