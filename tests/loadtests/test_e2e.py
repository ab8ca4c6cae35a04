"""`make e2e`: its clients are real, its kubectl is a fake that records what it is told. The real run needs a cluster."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtests.drills import cluster as clusters
from loadtests.drills import e2e
from loadtests.drills.cluster import Cluster, dark, rendered
from loadtests.drills.observation import content_of
from loadtests.traffic import Traffic
from tests.conftest import ROOT, eventually, kubectl

FAKE = """#!/bin/sh
echo "$@" >> {folder}/log
case "$*" in
  *"get rayservice"*) cat {folder}/service;;
  *"get namespace"*) echo namespace/recognition;;
  *"get raycluster"*) echo raycluster.ray.io/one;;
  *"get pods"*) cat {folder}/pods;;
  *"get --raw"*) cat {folder}/events; [ -e {folder}/ends ] || exec sleep 60;;
esac
"""


@pytest.fixture
def fake(tmp_path: Path) -> tuple[Cluster, Path]:
    program = tmp_path / "kubectl"
    program.write_text(FAKE.format(folder=tmp_path))
    program.chmod(0o755)
    made = Cluster("somewhere")
    made.typed[0] = str(program)
    return made, tmp_path


def service(seen: int = 1, **conditions: str) -> str:
    found = [{"type": kind, "status": status} for kind, status in conditions.items()]
    status = {"observedGeneration": seen, "conditions": found, "activeServiceStatus": {"rayClusterName": "one"}}
    return json.dumps({"metadata": {"generation": 1}, "status": status})


def test_a_state_is_waited_for_and_its_absence_told(fake: tuple[Cluster, Path]) -> None:
    cluster, folder = fake
    (folder / "service").write_text(service(Ready="True", UpgradeInProgress="False"))
    cluster.wait("it has settled", cluster.settled)
    for other in (service(Ready="True", UpgradeInProgress="True"), service(0, Ready="True", UpgradeInProgress="False")):
        (folder / "service").write_text(other)
        with pytest.raises(TimeoutError, match="it has settled"):
            cluster.wait("it has settled", cluster.settled, seconds=0)
    log = (folder / "log").read_text()
    assert "--context somewhere -n recognition get rayservice recognition -o json" in log
    assert "get rayservice,raycluster,pods" in log, "what there is instead"


def pod_of(name: str, ready: str, **metadata: str) -> dict[str, Any]:
    return {"metadata": {"name": name, **metadata}, "status": {"conditions": [{"type": "Ready", "status": ready}]}}


def test_a_pod_that_ends_is_not_among_the_workers(fake: tuple[Cluster, Path]) -> None:
    cluster, folder = fake
    (folder / "service").write_text(service())
    pods = [pod_of("a", "True"), pod_of("b", "True", deletionTimestamp="now"), pod_of("c", "False")]
    (folder / "pods").write_text(json.dumps({"items": pods}))
    assert cluster.pods("worker") == {"a": True, "c": False}
    assert "-l ray.io/cluster=one,ray.io/node-type=worker" in (folder / "log").read_text()


def test_a_state_must_hold(fake: tuple[Cluster, Path]) -> None:
    """What was true only for a moment, such as the old conditions of a service that has just lost its head."""
    states = iter([True, False, True, True, True, True])
    fake[0].wait("it holds", lambda: next(states), hold_s=1.5)
    assert len(list(states)) < 3, "the first moment did not count"


def event(kind: str, *ready: bool, name: str = "one") -> str:
    endpoints = [{"conditions": {"ready": state}} for state in ready] or None  # null: a slice without any
    return json.dumps({"type": kind, "object": {"metadata": {"name": name}, "endpoints": endpoints}})


def test_endpoints_are_watched(fake: tuple[Cluster, Path]) -> None:
    events = [
        event("ADDED", True), event("MODIFIED"), event("MODIFIED", True, False, True), event("ADDED", True, name="two"),
        event("DELETED", True, False, True),
    ]  # fmt: skip
    (fake[1] / "events").write_text("\n".join(events) + "\n")
    with fake[0].endpoints() as seen:
        eventually(lambda: len(seen) >= len(events))
    assert [count for _, count in seen][: len(events)] == [1, 0, 2, 3, 1]


@pytest.mark.parametrize("last", ["", '{"type": "ERROR", "object": {"metadata": {}, "code": 504}}\n'])
def test_a_watch_that_ends_counts_as_no_endpoint(fake: tuple[Cluster, Path], last: str) -> None:
    (fake[1] / "events").write_text(event("ADDED", True) + "\n" + last)
    (fake[1] / "ends").touch()
    with fake[0].endpoints() as seen:
        eventually(lambda: len(seen) == 2)
    assert [count for _, count in seen] == [1, 0]


def test_the_time_without_an_endpoint() -> None:
    seen = [(0.0, 1), (5.0, 0), (7.0, 2), (8.0, 0), (8.5, 1)]
    assert dark(seen, 1, 10) == 2.5
    assert dark(seen, 6, 10) == 1.5, "none at the beginning"
    assert dark(seen, 9, 10) == 0
    assert dark([], 1, 3) == 2, "nothing was seen"


@pytest.mark.parametrize("workers", [1, 2])
def test_head_and_workers_get_the_image_and_each_version_another_pod(workers: int) -> None:
    kubectl()
    first, second = (rendered(Cluster("somewhere"), "mine:1", workers, version) for version in "12")
    text = yaml.safe_dump(first)
    assert text.count("image: mine:1") == 2
    assert "image-recognition:dev" not in text
    spec = next(o["spec"] for o in first if o["kind"] == "RayService")
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    (ingress,) = yaml.safe_load(spec["serveConfigV2"])["applications"][0]["deployments"]
    assert (group["replicas"], group["minReplicas"], ingress["num_replicas"]) == (workers, workers, workers)
    assert group["maxReplicas"] > workers, "room for an update in place"
    assert yaml.safe_dump(second) == text.replace("recognition/version: '1'", "recognition/version: '2'")
    assert yaml.safe_dump(second) != text


def test_a_service_that_already_runs_is_not_touched(
    fake: tuple[Cluster, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(e2e, "Cluster", lambda _: fake[0])
    args = {"context": "production", "image": "mine:1", "workers": 1, "times": 1, "events": ["upgrade"], "chart": ""}
    assert not e2e.main(argparse.Namespace(**args))
    assert "production has a namespace recognition" in capsys.readouterr().out
    (asked,) = (fake[1] / "log").read_text().splitlines()
    assert "get namespace" in asked


def test_the_readme_names_every_event() -> None:
    operator = e2e.Operator(Cluster("somewhere"), "mine:1", 1)
    assert "upgrade" in operator.events
    assert all(callable(event) for event in operator.events.values())
    readme = (ROOT / "kuberay" / "README.md").read_text()
    assert [name for name in operator.events if f"`{name}`" not in readme] == []


@pytest.fixture
def pod(server: str) -> Iterator[subprocess.Popen[str]]:
    """The client of the pod, on this machine."""
    command = [sys.executable, "-m", "loadtests.drills.observation", server]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):  # a line for a client that had ended may still be in the buffer
            process.stdin.close()


def test_both_clients_see_an_event(server: str, pod: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Against the real service; an event that leaves the Service without an endpoint fails, as does a lost request."""
    traffic = Traffic(server, content_of())
    with traffic.flowing(closed=1, rate=1, pause_s=0.3):
        assert e2e.run("nothing", lambda: None, traffic, pod, [(0.0, 1)])
        assert not e2e.run("dark", lambda: None, traffic, pod, [(0.0, 0)])
        pod.kill()
        with pytest.raises((ValueError, BrokenPipeError)):
            e2e.run("no client", lambda: None, traffic, pod, [(0.0, 1)])
    out = capsys.readouterr().out
    assert out.count("proxy  nothing") == out.count("pod    nothing") == 1
    assert "without an endpoint for 0.0 s" in out


def test_the_client_pod_would_be_admitted() -> None:
    """By Pod Security `restricted`, which the namespace enforces."""
    spec = clusters.client_pod("mine:1")["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    (container,) = spec["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
