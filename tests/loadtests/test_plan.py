"""From a curve to sizes and patches: a curve that was measured, and what Serve and `check` say of what is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from loadtests.capacity import curve, sizing
from loadtests.capacity.plan import Availability, Plan
from loadtests.capacity.sizing import Unreachable, spare
from serve_app.batch.price import Instance
from serve_app.ops import manifests, serve_config
from serve_app.ops.check import check
from serve_app.ops.overlay import Overlay, read, requested_resources
from tests.conftest import ROOT

MEASURED = Path(__file__).with_name("curve.json")  # one replica on two cores, 2026-11-25, see loadtests/RESULTS.md


@pytest.fixture(scope="module")
def measured() -> curve.Curve:
    return curve.read(MEASURED)


@pytest.fixture(scope="module")
def made(measured: curve.Curve) -> Plan:
    return sizing.make(measured, 40, 500, availability="zone", instance=Instance("c7i.large", 0.09))


def test_a_curve_survives_its_file(measured: curve.Curve, tmp_path: Path) -> None:
    curve.write(measured, tmp_path / "curve.json")
    assert curve.read(tmp_path / "curve.json") == measured


def test_the_knee_is_the_last_load_that_was_followed(measured: curve.Curve) -> None:
    assert curve.follows(measured.knee)
    assert not curve.follows(measured.steps[-1])
    assert measured.below(measured.knee.offered).steps[-1].offered == measured.knee.offered


def test_the_interval_holds_the_estimate(made: Plan) -> None:
    for one in (made.p95, made.most):
        assert one.low <= one.middle <= one.high
        assert one.high > one.low


def test_the_plan_is_as_large_as_needed(made: Plan, measured: curve.Curve) -> None:
    assert made.p95.high <= 500
    assert made.needed >= 40 / made.most.high, "never above what a replica can do"
    station, fewer = measured.station(), made.needed - 1
    missed = sizing.at(station, fewer, 40, np.random.default_rng(7)).percentile() * 1000 > 500
    assert missed or 40 / fewer > sizing.TRUSTED * station.most, "and not larger for nothing"
    assert 40 / made.needed <= sizing.TRUSTED * station.most, "as high as it was held against measurements"


def test_more_peak_or_less_patience_never_costs_less(measured: curve.Curve) -> None:
    sizes = [sizing.make(measured, peak, 500).needed for peak in (5, 40)]
    assert sizes == sorted(sizes)
    assert sizing.make(measured, 20, 250).needed >= sizing.make(measured, 20, 1000).needed


def test_an_objective_below_an_idle_replica_is_unreachable(measured: curve.Curve) -> None:
    with pytest.raises(Unreachable, match="no number of replicas meets"):
        sizing.make(measured, 5, 20)
    idle = sizing.at(measured.station(), 1, 0.3, np.random.default_rng(0)).percentile() * 1000
    with pytest.raises(Unreachable, match="idle nearly all the time"):
        sizing.make(measured, 5, 1.1 * idle)


@pytest.mark.parametrize(
    ("nodes", "availability", "with_spare"),
    [(3, "none", 3), (3, "node", 4), (1, "zone", 2), (2, "zone", 3), (4, "zone", 6), (6, "zone", 9)],
)
def test_what_may_be_lost_is_spare(nodes: int, availability: Availability, with_spare: int) -> None:
    assert spare(nodes, availability) == with_spare


def test_the_cost_is_nodes_by_hours(made: Plan) -> None:
    low, high = made.per_month
    assert high == pytest.approx(made.nodes * 0.09 * 730)
    assert low == pytest.approx(made.fewest_nodes * 0.09 * 730)
    assert made.per_million == pytest.approx(made.nodes * 0.09 / (40 * 3600) * 1e6)
    with pytest.raises(ValueError, match="not like"):
        Instance.parse("g6.xlarge")


def test_the_serve_patch_is_an_overlays_difference(made: Plan) -> None:
    """Alone, as SERVE_CONFIG_DIFFERENCE, and over production's."""
    base = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    for below in (base, manifests.serve_config(manifests.OVERLAYS / "production")):
        merged = serve_config.merged(below, made.serve())
        serve_config.check(merged)
        (door,) = merged["applications"][0]["deployments"]
        assert "num_replicas" not in door
        assert door["autoscaling_config"]["max_replicas"] == made.replicas
        assert door["autoscaling_config"]["policy"]["policy_kwargs"] == {"target_s": made.target_wait_s}
        assert door["max_ongoing_requests"] > merged["applications"][0]["args"]["max_waiting_images"]
        assert door["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0}


def applied(overlay_read: Overlay, made: Plan) -> Overlay:
    """An overlay with the four patches."""
    overlay_read.serve = serve_config.merged(overlay_read.serve, made.serve())
    overlay_read.args = overlay_read.serve["applications"][0]["args"]
    overlay_read.deployments = overlay_read.serve["applications"][0]["deployments"]
    for one in made.workers():
        assert one["op"] == "replace"
        *path, key = one["path"].removeprefix("/spec/rayClusterConfig/workerGroupSpecs/0/").split("/")
        at: Any = overlay_read.workers
        for step in path:
            at = at[int(step) if step.isdigit() else step]
        assert key in at
        at[key] = one["value"]
    pool = made.nodepool()
    (known,) = [o for o in overlay_read.kind("NodePool") if o["metadata"]["name"] == pool["metadata"]["name"]]
    known["spec"]["limits"] = pool["spec"]["limits"]
    budget = made.budget()
    (known,) = [o for o in overlay_read.kind(budget["kind"]) if o["metadata"]["name"] == budget["metadata"]["name"]]
    known["spec"] |= budget["spec"]
    return overlay_read


GPU, CPU = {"gpu": "L4", "cores": 8}, {"cores": 4}


@pytest.mark.parametrize(
    ("overlay", "hardware", "together"), [("production", GPU, 4), ("staging", CPU, 1), ("staging", CPU, 2)]
)
def test_check_has_nothing_to_say_of_an_overlay_with_the_patches(
    measured: curve.Curve, rendered: dict[str, Path], overlay: str, hardware: dict[str, str | float], together: int
) -> None:
    """As if it had been measured there."""
    there = measured.model_copy(update={"hardware": hardware, "replicas": together})
    large = sizing.make(there, 160, 600, availability="zone")
    overlay_read = applied(read(rendered[overlay]), large)
    assert check(overlay_read) == []
    (door,) = overlay_read.deployments
    assert {
        int(overlay_read.worker_capacity()[what] / share) for what, share in requested_resources(door).items() if share
    } == {together}
    overlay_read.workers["maxReplicas"] -= 1
    assert [f for f in check(overlay_read) if "may fill every worker" in f.why]


def test_without_its_node_pool_a_large_plan_does_not_pass(measured: curve.Curve, rendered: dict[str, Path]) -> None:
    gpu = measured.model_copy(update={"hardware": GPU, "replicas": 4})
    large = sizing.make(gpu, 160, 600, availability="zone")
    assert large.nodes > 4, "more than production has room for as it is"
    small = applied(read(rendered["production"]), large)
    small.kind("NodePool")[1]["spec"]["limits"] = {"nvidia.com/gpu": "10"}
    assert [f for f in check(small) if "three clusters" in f.why], "without its node pool the upgrade would hang"


def capacity(*typed: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtests.capacity", *typed]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ)


def test_the_command_line_plans_and_replays(tmp_path: Path) -> None:
    sizing = f"--curve {MEASURED} --peak-rps 40 --p95-ms 600 --instance c7i.large:0.09/h --availability none".split()
    sizing += ["--out", str(tmp_path)]
    planned = capacity("plan", *sizing)
    assert planned.returncode == 0, planned.stderr
    assert "cost of a million photos" in planned.stdout
    patches = {"serve.yaml", "workers.yaml", "nodepool.yaml", "budget.yaml"}
    assert {path.name for path in tmp_path.iterdir()} == patches | {"plan.png"}
    serve_config.load(ROOT / "serve_config.yaml", (tmp_path / "serve.yaml").read_text())
    replayed = capacity("replay", *sizing, "--trace", "flash-crowd", "--hours", "0.25", "--node-s", "120")
    assert replayed.returncode == 1, replayed.stdout + replayed.stderr
    assert "missed from" in replayed.stdout
    again = capacity("replay", *sizing, "--trace", str(tmp_path / "trace.csv"), "--node-s", "120")
    assert again.stdout.splitlines()[1:-1] == replayed.stdout.splitlines()[1:-1], "the CSV is the same day"
    refused = capacity("plan", *sizing, "--p95-ms", "1")
    assert refused.returncode == 1
    assert "no number of replicas meets" in refused.stderr
