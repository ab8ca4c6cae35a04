"""A release on a cluster: upgraded under traffic, watched, put back. kubectl writes down what it is told."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, script

SCRIPT = ROOT / ".github" / "deploy.py"
NOW = 3  # workers
OLD, NEW = "recognition@sha256:old", "recognition@sha256:new"
# It says what the files beside it say, and keeps what is applied: `new` or, with the old image, `back`.
FAKE = """#!/bin/sh
cd {folder}
echo "$*" >>log
case "$*" in
  *"get --filename"*) cat there;;
  *"view-last-applied rayservice"*) cat old.yaml;;
  *view-last-applied*) echo "kind: ServiceAccount";;
  *"apply --filename -") cat >given; echo applied
    if grep -q sha256:old given; then mv given back; exit; fi
    test ! -e broken || exit 1; mv given new; test ! -e pages_after || mv pages_after rules;;
  *"get rayservice recognition"*) cat service;;
  *"get raycluster recognition-1"*) echo '{{"status": {{"desiredWorkerReplicas": {now}}}}}';;
  *"get raycluster"*) cat clusters;;
  *"get --raw"*) test ! -e silent && cat rules;;
esac
"""


def rules(**firing: bool) -> str:
    """As Prometheus tells them: the pages, and one alert that wakes nobody."""
    told = [
        {"name": name, "state": "firing" if fires else "inactive", "labels": {"severity": "page"}}
        for name, fires in firing.items()
    ]
    told.append({"name": "QueueGrows", "state": "firing", "labels": {"severity": "ticket"}})
    return json.dumps({"status": "success", "data": {"groups": [{"name": "recognition", "rules": told}]}})


def service(generation: int = 2, ready: str = "True", upgrading: str = "False") -> str:
    conditions = [{"type": "Ready", "status": ready}, {"type": "UpgradeInProgress", "status": upgrading}]
    active = {"rayClusterName": "recognition-1"}
    status = {"observedGeneration": 2, "conditions": conditions, "activeServiceStatus": active}
    return json.dumps({"metadata": {"generation": generation}, "status": status})


class Cluster:
    """A folder with what kubectl answers."""

    def __init__(self, folder: Path, production: str) -> None:
        self.folder = folder
        self.manifests = folder / "new.yaml"
        self.say("new.yaml", production.replace("image-recognition:0.1.0", NEW))
        old = next(o for o in yaml.safe_load_all(production) if o["kind"] == "RayService")
        self.say("old.yaml", yaml.safe_dump(old).replace("image-recognition:0.1.0", OLD))
        self.say("there", "rayservice.ray.io/recognition\nserviceaccount/recognition\n")
        self.say("service", service())
        self.say("clusters", "raycluster.ray.io/recognition-1\n")
        self.say("rules", rules(AvailabilityBurnsFast=False))
        (folder / "bin").mkdir()
        kubectl = folder / "bin" / "kubectl"
        kubectl.write_text(FAKE.format(folder=folder, now=NOW))
        kubectl.chmod(0o755)

    def say(self, file: str, text: str) -> None:
        (self.folder / file).write_text(text)

    @property
    def told(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def put_back(self) -> str:
        back = self.folder / "back"
        return back.read_text() if back.exists() else ""

    @property
    def applied(self) -> str:
        return (self.folder / "new").read_text()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rendered: dict[str, Path]) -> Cluster:
    monkeypatch.setenv("API_KEY", "of-the-drill")  # production asks for one
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    return Cluster(tmp_path, rendered["production"].read_text())


@pytest.fixture
def deploy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, in a hurry, and with an upgrade without traffic."""
    module = script(SCRIPT)
    for name, seconds in (("SETTLE_S", 0.5), ("WATCH_S", 0.5), ("EVERY_S", 0.05)):
        monkeypatch.setattr(module, name, seconds)
    monkeypatch.setattr(module, "drill", lambda manifests, _url: module.apply(manifests.read_text()))
    return module


def test_a_good_release_stays(cluster: Cluster, deploy: Any) -> None:
    deploy.main(cluster.manifests, "http://staging")
    assert "--namespace recognition apply --filename -" in cluster.told
    assert NEW in cluster.applied
    assert not cluster.put_back


def test_what_was_applied_before_is_put_back_when_a_page_fires(cluster: Cluster, deploy: Any) -> None:
    cluster.say("pages_after", rules(AvailabilityBurnsFast=True, NoReplica=False))
    with pytest.raises(InterruptedError, match=r"AvailabilityBurnsFast$"):
        deploy.main(cluster.manifests, "http://staging")
    assert OLD in cluster.put_back
    kinds = [one["kind"] for one in yaml.safe_load_all(cluster.put_back)]
    assert kinds == ["RayService", "ServiceAccount"], "every object that was there"
    assert size(cluster.put_back) == (NOW, 4 * NOW), "the way back is as large as the load"


def test_what_was_applied_before_is_put_back_when_the_upgrade_fails(cluster: Cluster, deploy: Any) -> None:
    cluster.say("broken", "")
    with pytest.raises(subprocess.CalledProcessError):
        deploy.main(cluster.manifests, "http://staging")
    assert OLD in cluster.put_back


def size(manifests: str) -> tuple[int, int]:
    """The workers and the replicas that the new cluster starts with."""
    spec = next(o for o in yaml.safe_load_all(manifests) if o["kind"] == "RayService")["spec"]
    (ingress,) = yaml.safe_load(spec["serveConfigV2"])["applications"][0]["deployments"]
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    return group["replicas"], ingress["autoscaling_config"]["initial_replicas"]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        pytest.param(NOW, (NOW, 4 * NOW), id="four replicas to a GPU"),
        pytest.param(1, (2, 8), id="not fewer than the smallest size"),
        pytest.param(9, (5, 16), id="not more than the largest"),
    ],
)
def test_the_new_cluster_is_as_large_as_the_old_one(
    cluster: Cluster, deploy: Any, now: int, expected: tuple[int, int]
) -> None:
    manifests = cluster.manifests.read_text()
    assert size(deploy.carried(manifests, now)) == expected
    assert deploy.carried(deploy.carried(manifests, 5), now) == deploy.carried(manifests, now), "again and again"


def test_a_service_without_an_autoscaler_gets_its_workers(deploy: Any, rendered: dict[str, Path]) -> None:
    staging = rendered["staging"].read_text()
    objects = [list(yaml.safe_load_all(text)) for text in (staging, deploy.carried(staging, 2))]
    for service in (next(o for o in one if o["kind"] == "RayService")["spec"] for one in objects):
        service["serveConfigV2"] = yaml.safe_load(service["serveConfigV2"])
    assert objects[0] == objects[1], "nothing else is changed"


def test_by_hand_it_is_printed(cluster: Cluster) -> None:
    command = [sys.executable, str(SCRIPT), str(cluster.manifests), "--carry"]
    assert size(subprocess.run(command, capture_output=True, text=True, check=True).stdout) == (NOW, 4 * NOW)
    assert "apply" not in cluster.told


@pytest.mark.parametrize(
    ("file", "text"),
    [
        pytest.param("service", service(generation=3), id="KubeRay has not seen it"),
        pytest.param("service", service(upgrading="True"), id="two clusters"),
        pytest.param("service", service(ready="False"), id="nobody answers"),
        pytest.param("service", '{"metadata": {"generation": 1}}', id="no status yet"),
        pytest.param("clusters", "raycluster.ray.io/one\nraycluster.ray.io/two\n", id="the old one is still there"),
    ],
)
def test_an_upgrade_is_waited_for_and_given_up(cluster: Cluster, deploy: Any, file: str, text: str) -> None:
    cluster.say(file, text)
    with pytest.raises(TimeoutError, match="not settled on one cluster"):
        deploy.apply(cluster.manifests.read_text())
    assert "get rayservice,raycluster,pods" in cluster.told, "what there is instead"


def test_nothing_is_touched_while_a_page_fires(cluster: Cluster, deploy: Any) -> None:
    cluster.say("rules", rules(LatencyBurnsFast=True))
    with pytest.raises(SystemExit, match="nothing was changed, firing alerts: LatencyBurnsFast"):
        deploy.main(cluster.manifests, "http://staging")
    assert "apply" not in cluster.told


def test_nothing_is_touched_without_the_key_that_the_service_asks_for(
    cluster: Cluster, deploy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "")  # as GitHub sets a secret that does not exist
    with pytest.raises(SystemExit, match="nothing was changed: the service asks for a key"):
        deploy.main(cluster.manifests, "http://staging")
    assert "apply" not in cluster.told


def test_nothing_is_touched_where_nobody_would_be_paged(cluster: Cluster, deploy: Any) -> None:
    cluster.say("rules", rules())
    with pytest.raises(LookupError, match="no alert with severity page"):
        deploy.main(cluster.manifests, "http://staging")
    assert "apply" not in cluster.told


def test_nothing_is_touched_where_there_is_no_service(cluster: Cluster, deploy: Any) -> None:
    cluster.say("there", "serviceaccount/recognition\n")
    with pytest.raises(SystemExit, match="create the first one by hand"):
        deploy.main(cluster.manifests, "http://staging")
    assert "apply --filename" not in cluster.told


def test_a_silent_prometheus_is_asked_again_and_then_not_trusted(cluster: Cluster, deploy: Any) -> None:
    cluster.say("silent", "")
    with pytest.raises(subprocess.CalledProcessError):
        deploy.watch()
    assert cluster.told.count("get --raw") == deploy.BLIND + 1


def test_the_manifests_have_pages_and_the_prometheus_that_is_asked(rendered: dict[str, Path]) -> None:
    for name in ("staging", "production"):
        objects = yaml.safe_load_all(rendered[name].read_text())
        groups = [group for o in objects if o["kind"] == "PrometheusRule" for group in o["spec"]["groups"]]
        alerts = {rule["alert"]: rule["labels"]["severity"] for g in groups for rule in g["rules"] if "alert" in rule}
        assert alerts["AvailabilityBurnsFast"] == "page"
    monitoring = (ROOT / "kuberay" / "addons" / "charts.txt").read_text()
    assert re.search(r"^monitoring +monitoring +kube-prometheus-stack", monitoring, re.MULTILINE), "names the Service"


def test_with_the_way_back_it_fits_the_hour_of_the_role() -> None:
    module = script(SCRIPT)
    assert 2 * module.SETTLE_S + module.WATCH_S < 3600 - 300


def test_a_cancelled_job_puts_back(cluster: Cluster) -> None:
    """The real script, told to stop while it watches."""
    program = (
        "import runpy, subprocess, sys\n"
        f"sys.argv = ['deploy.py', '{cluster.manifests}', 'http://staging']\n"
        "real = subprocess.run\n"  # without the drill, which needs a service
        "subprocess.run = lambda typed, **given: real(['true'] if 'loadtests.drills.drill' in typed else typed, **given)\n"
        f"runpy.run_path('{SCRIPT}', run_name='__main__')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    end = time.monotonic() + 20
    while not (cluster.folder / "log").exists() or cluster.told.count("get --raw") < 2:
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert OLD in cluster.put_back


def test_the_upgrade_is_drilled(cluster: Cluster, server: str) -> None:
    """The real drill against the real service, its event the real script's `--apply`."""
    program = (
        "import runpy\n"
        f"deploy = runpy.run_path('{SCRIPT}')\n"
        f"deploy['drill'](__import__('pathlib').Path('{cluster.manifests}'), '{server}')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert not ended.returncode, ended.stdout + ended.stderr
    assert "lost, late, wrong or of unknown weights: 0" in ended.stdout
    assert NEW in cluster.applied
    cluster.say("broken", "")
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode, "an upgrade that fails fails the drill"
