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


def note(d: Overlay, key: str, value: str) -> None:
    d.kind("Ingress")[0]["metadata"]["annotations"][f"alb.ingress.kubernetes.io/{key}"] = value


def drop(d: Overlay, kind: str) -> None:
    d.objects[:] = [o for o in d.objects if o["kind"] != kind]


def budget(d: Overlay, **spec: object) -> None:
    d.kind("PodDisruptionBudget")[0]["spec"] = spec


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
    ("batches", "two batches", lambda d: d.deployments[0].pop("max_ongoing_requests")),
    ("updates", "before new ones", lambda d: d.deployments[0].pop("max_surge_percent")),
    ("updates", "may fill every worker", lambda d: d.cluster["workerGroupSpecs"][0].update(maxReplicas=4)),
    ("replicas_fit", "never start", lambda d: d.cluster["workerGroupSpecs"][0].update(maxReplicas=1)),
    ("replicas_fit", "GPUs stay idle", lambda d: d.deployments[0]["ray_actor_options"].update(num_cpus=2, num_gpus=0.25)),
    ("upgrades", "Upgrades hang", lambda d: d.kind("NodePool")[1]["spec"]["limits"].update({"nvidia.com/gpu": 7})),
    ("upgrades", "Upgrades hang", lambda d: d.cluster["workerGroupSpecs"][0].update(maxReplicas=40)),
    ("ray_ports", "asks for no token", lambda d: d.cluster.pop("authOptions")),
    ("ray_ports", "other than Serve's", lambda d: d.kind("Ingress")[0]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"].update(number=8265)),
    ("ray_ports", "neither probes", lambda d: d.serve["http_options"].update(host="127.0.0.1")),
    ("disruptions", "all workers", lambda d: drop(d, "PodDisruptionBudget")),
    ("disruptions", "no eviction", lambda d: budget(d, maxUnavailable=1)),
    ("disruptions", "never ends", lambda d: d.cluster["workerGroupSpecs"][0].update(minReplicas=1)),
    ("internet_facing", "clear text", lambda d: note(d, "certificate-arn", "")),
    ("internet_facing", "how often", lambda d: note(d, "wafv2-acl-arn", "")),
    ("versions", "has Ray", lambda d: d.cluster.update(rayVersion="2.9.0")),
    ("versions", "different images", lambda d: worker(d)["containers"][0].update(image="image-recognition:other")),
    ("versions", "latest", lambda d: [pod["containers"][0].update(image="registry:5000/recognition") for pod in d.pods()]),
    ("versions", "environment variables", lambda d: worker(d)["containers"][0].pop("env")),
    ("unknown_keys", "max_ongoing_request", lambda d: d.deployments[0].update(max_ongoing_request=5)),
    ("unknown_keys", "ignores", lambda d: d.service.update(serviceUnhealthySecondThreshold=300)),
    ("head_runs_no_replicas", "starve", lambda d: d.cluster["headGroupSpec"]["rayStartParams"].clear()),
    ("throughput_messages", "4 MiB", throughput),
    ("dns", "block DNS", lambda d: [p["spec"].update(egress=[{"ports": [{"port": 443}]}]) for p in d.kind("NetworkPolicy")]),
    ("aws_account", "cannot read", lambda d: worker(d).update(serviceAccountName="other")),
    ("aws_account", "no photo", lambda d: setattr(d, "terraform", d.terraform.replace("SizeRestrictions", ""))),
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
