"""The run on a GPU, on the CPU: every part goes to its end, and a part that fails or hangs does not take the rest with it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from loadtests.gpu import __main__ as run
from loadtests.gpu import report
from loadtests.gpu.plan import per_second
from loadtests.gpu.service import shared
from loadtests.service import ROOT
from serve_app.ops import serve_config


def dry_run(*options: str) -> tuple[int, dict[str, dict[str, Any]], str]:
    """(exit code, what each part printed, the rest of the output)."""
    command = [sys.executable, "-m", "loadtests.gpu", "--dry-run", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    lines = done.stdout.splitlines()
    found = {one["part"]: one for one in (json.loads(line) for line in lines if line.startswith("{"))}
    return done.returncode, found, "\n".join(line for line in lines if not line.startswith("{"))


def test_a_dry_run_goes_through_all_parts() -> None:
    status, found, told = dry_run()
    assert status == 0
    assert list(found) == list(run.PARTS)
    assert not any("failed" in part for part in found.values())
    assert found["correct"]["score"] < 0.02
    assert found["correct"]["other_classes"] == 0
    assert [row["batch"] for row in found["sweep"]["rows"]] == [1, 2, 3]
    assert found["accuracy"]["reference"]["objects"] >= 1
    assert found["accuracy"]["auto"]["missed"] == 0
    assert found["swap"]["batches"] > 0
    assert found["swap"]["wrong"] == 0
    assert set(found["turns"]["img_s"]) == {"1", "2"}
    assert "| batch | graph ms |" in told
    assert "failed: nothing" in told
    assert "recommended: max_batch_size:" in told


def test_a_part_that_fails_is_reported_and_the_others_run() -> None:
    status, found, told = dry_run("--weights", "missing.pt", "--parts", "machine", "correct", "decode")
    assert status == 1
    assert [name for name, part in found.items() if "failed" in part] == ["correct"]
    assert list(found) == ["machine", "correct", "decode"]
    assert "failed: correct" in told


def test_a_part_that_hangs_ends_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.PARTS, "machine", (run.PARTS["machine"][0], 0.01))
    found = run.watch(["machine", "decode"], ["--dry-run"])
    assert found["machine"]["failed"] == "it took more than 0.01 s"
    assert found["decode"]["photos"]["one_thread_img_s"] > 0


def test_the_limits_leave_a_run_below_nine_minutes() -> None:
    assert sum(limit for _, limit in run.PARTS.values()) <= 540


@pytest.mark.parametrize("callers", [1, 3])
def test_each_caller_is_counted(callers: int) -> None:
    counts = [0] * callers

    def call(i: int) -> None:
        counts[i] += 1
        time.sleep(0.001)  # lets the others have a turn

    rate = per_second([lambda i=i: call(i) for i in range(callers)], 1)  # type: ignore[misc]
    assert min(counts) > 1, "each caller's first call is not counted"
    assert 0 < rate < sum(counts)


ROWS = [{"batch": n, "img_s": [rate, rate, 0]} for n, rate in ((1, 100.0), (8, 955.0), (16, 1000.0), (32, 990.0))]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        pytest.param({"sweep": {"rows": ROWS}}, "max_batch_size: 8", id="the smallest batch that is as good"),
        pytest.param(
            {"turns": {"img_s": {"1": 50.0, "2": 99.0, "4": 100.0}}}, "more than 2 add nothing", id="processes"
        ),
        pytest.param(
            {"turns": {"img_s": {"1": 50.0, "2": 50.0}}, "mps": {"img_s": {"1": 50.0, "2": 90.0}}}, "MPS: yes", id="MPS"
        ),
        pytest.param(
            {"turns": {"img_s": {"1": 90.0}}, "mps": {"img_s": {"1": 91.0}}}, "MPS: no", id="MPS gains nothing"
        ),
        pytest.param({"turns": {"img_s": {"1": 90.0}}, "mps": {"not measured": "…"}}, "MPS: not measured", id="no MPS"),
    ],
)
def test_what_is_recommended_follows_from_the_numbers(parts: dict[str, Any], expected: str) -> None:
    assert any(expected in line for line in report.recommended(parts))


@pytest.mark.parametrize("replicas", [1, 3, 12])
def test_replicas_share_one_gpu(replicas: int) -> None:
    difference = shared(replicas, 16, dry=False)
    serve_config.check(serve_config.merged(serve_config.load(ROOT / "serve_config.yaml"), difference))
    options = difference["applications"][0]["deployments"][0]["ray_actor_options"]
    assert replicas * options["num_gpus"] <= 1 + 1e-9
