"""The plan of a batch job: nodes, hours and cost from the summary of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.capacity import bulk
from loadtests.capacity.bulk import BulkPlan
from loadtests.service import ROOT
from serve_app.batch.price import Instance

INSTANCE = Instance("g6.xlarge", 0.8)


@pytest.mark.parametrize(
    ("photos", "hours", "nodes", "takes"),
    [(180_000, 1, 1, 1.0), (180_001, 1, 2, 0.5), (2_000_000, 6, 2, 5.56), (2_000_000, 1, 12, 0.93), (1, 1, 1, 0.0)],
)
def test_the_fewest_nodes_that_are_done_in_time(photos: int, hours: float, nodes: int, takes: float) -> None:
    plan = BulkPlan(photos, hours, rate=50, measured=10_000, instance=INSTANCE)
    assert plan.nodes == nodes
    assert plan.takes == pytest.approx(takes, abs=0.005)
    assert plan.takes <= hours


def test_the_cost_does_not_depend_on_the_number_of_nodes() -> None:
    costs = {dict(BulkPlan(2_000_000, hours, 50, 1, INSTANCE).rows())["cost"] for hours in (1, 3, 12)}
    assert costs == {"8.89 with g6.xlarge, 4.44 a million photos"}


def test_the_command_plans_from_a_summary(tmp_path: Path) -> None:
    last = {"images": 20_480, "seconds": 310.0, "images_per_s": 132.0, "nodes": 2}
    (tmp_path / "_summary.json").write_text(json.dumps({"images": 20_480, "failed": {}, "left_out": {}, "last": last}))
    args = "--photos", "2000000", "--hours", "3", "--instance", "c7i.large:0.0996/h"
    line = [sys.executable, "-m", "loadtests.capacity", "batch", "--summary", str(tmp_path / "_summary.json"), *args]
    printed = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "66.0 photos/s, from a run of 20,480 photos" in printed
    assert "nodes                3\n" in printed
    assert "0.84 with c7i.large, 0.42 a million photos" in printed


def test_a_summary_without_a_rate_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "_summary.json").write_text('{"images": 3, "failed": {}, "left_out": {}}')
    with pytest.raises(ValueError, match="has no rate"):
        bulk.read(tmp_path / "_summary.json", 1, 1, None)
