"""What `make e2e` says to a cluster, with a kubectl that only writes down what it is told. The real run needs a cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from loadtests.drills import e2e
from tests.conftest import kubectl

FAKE = """#!/bin/sh
echo "$@" >> {log}
case "$*" in *"get rayservice"*) cat {status};; esac
"""


@pytest.fixture
def told(tmp_path: Path) -> tuple[e2e.Cluster, Path, Path]:
    log, status, kubectl = tmp_path / "log", tmp_path / "status.json", tmp_path / "kubectl"
    kubectl.write_text(FAKE.format(log=log, status=status))
    kubectl.chmod(0o755)
    cluster = e2e.Cluster("somewhere")
    cluster._typed[0] = str(kubectl)
    return cluster, log, status


def test_a_condition_is_waited_for_and_its_absence_told(
    told: tuple[e2e.Cluster, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, log, status = told
    status.write_text(json.dumps({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}))
    cluster.until("Ready", "True")
    monkeypatch.setattr(e2e, "READY_S", 0)
    with pytest.raises(TimeoutError, match="UpgradeInProgress is True"):
        cluster.until("UpgradeInProgress", "True")
    assert "--context somewhere -n recognition get rayservice recognition -o json" in log.read_text()


def test_head_and_workers_get_the_image() -> None:
    kubectl()
    text = yaml.safe_dump(e2e.rendered(e2e.Cluster("somewhere"), "mine:1"))
    assert text.count("image: mine:1") == 2
    assert "image-recognition:dev" not in text
