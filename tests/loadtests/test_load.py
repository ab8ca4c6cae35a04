"""Load tests with Locust: shapes, the objective, a short run against the real service, and the manifest."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from loadtests.load.shapes import SHAPES, level
from loadtests.load.slo import Objective
from loadtests.photo_mix import SHARES, photo_mix
from serve_app.vision.image import decode
from tests.conftest import ROOT
from tests.ops.test_manifests import KUBERNETES

MANIFEST = ROOT / "loadtests" / "load" / "locust.yaml"


@pytest.mark.parametrize(
    ("requests", "failed", "p95_ms", "breach"),
    [
        pytest.param(100, 1, 200.0, None, id="just met"),
        pytest.param(100, 2, 200.0, "2 of 100 failed", id="one failure too many"),
        pytest.param(100, 0, 201.0, "p95 201 ms", id="a millisecond too slow"),
        pytest.param(19, 0, 1.0, "19 requests, 20 are needed", id="too few to judge"),
        pytest.param(0, 0, 0.0, "0 requests", id="none"),
        pytest.param(100, 0, float("nan"), "p95", id="no number is not good"),
    ],
)
def test_an_objective(requests: int, failed: int, p95_ms: float, breach: str | None) -> None:
    found = Objective(200).breaches(requests, failed, p95_ms)
    assert [breach in one for one in found] == [True] if breach else found == []


def test_every_shape_has_a_peak_and_an_end() -> None:
    for name, stages in SHAPES.items():
        assert 0 < max(stage.level for stage in stages) <= 1
        assert level(name, sum(stage.seconds for stage in stages) + 1) is None
        assert level(name, 0) == stages[0].level
    assert level("burst", 59) == 0.3
    assert level("burst", 61) == 1.0


def test_the_mix_is_twenty_photos_that_the_service_reads() -> None:
    photos = photo_mix()
    assert [sum(photo.name == name for photo in photos) for name in SHARES] == [n for n, *_ in SHARES.values()]
    assert photo_mix() == photos, "in the same order each time"
    sizes = {photo.name: decode(photo.content, 52_000_000, 1000).shape for photo in photos}
    assert 10e6 < sizes["12 MP JPEG"][0] * sizes["12 MP JPEG"][1] < 14e6
    assert len({photo.media_type for photo in photos}) == 3


def test_locust_judges_the_real_service(server: str, tmp_path: Path) -> None:
    """Met, and the stages are entries of their own that are not in the total; then one that no service could meet."""
    typed = [sys.executable, "-m", "loadtests.load", "--url", server, "--out", str(tmp_path), "--peak", "10"]
    met = subprocess.run(
        [*typed, "--p95-ms", "20000", "--min-requests", "10"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert met.returncode == 0, met.stdout + met.stderr
    assert "objective met" in met.stdout
    rows = {row["Name"]: row for row in csv.DictReader((tmp_path / "smoke_stats.csv").read_text().splitlines())}
    assert {"preprocess", "queue", "detect", "postprocess", "total"} <= set(rows)
    assert (
        rows["Aggregated"]["Request Count"] == rows["/v1/predict"]["Request Count"] == rows["detect"]["Request Count"]
    )
    assert (tmp_path / "smoke.html").stat().st_size > 10_000


def test_the_gate_is_the_exit_code() -> None:
    """Nobody listens: Locust cannot learn the right answers, so nothing can be judged."""
    typed = [sys.executable, "-m", "loadtests.load", "--url", "http://127.0.0.1:9", "--peak", "1"]
    missed = subprocess.run(typed, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert missed.returncode == 1
    assert "objective missed: 0 requests" in missed.stdout


def test_the_manifest_is_valid_and_fits_together() -> None:
    objects = list(yaml.safe_load_all(MANIFEST.read_text()))
    for one in objects:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    service, master, workers = objects
    labels = master["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels
    (sends,) = workers["spec"]["template"]["spec"]["containers"]
    (keeps,) = master["spec"]["template"]["spec"]["containers"]
    assert f"--expect-workers={workers['spec']['parallelism']}" in keeps["args"]
    assert sends["env"] == keeps["env"], "both ask a service that may want a key"
    assert sends["command"][sends["command"].index("--master-host") + 1] == service["metadata"]["name"]
    assert sends["image"] == keeps["image"]
    assert keeps["args"][-1] == sends["command"][-1] == "Open"
    folder = MANIFEST.parent.parent
    for one in (master, workers):
        (volume,) = one["spec"]["template"]["spec"]["volumes"]
        _, inner = volume["projected"]["sources"]
        paths = {item["path"] for item in inner["configMap"]["items"]}
        assert paths == {str(p.relative_to(folder)) for p in MANIFEST.parent.glob("*.py")} - {"load/__main__.py"}


def test_the_key_is_sent_with_every_request() -> None:
    """In a process of its own: importing Locust patches the standard library."""
    code = "from loadtests.load.locustfile import KEY; print(KEY)"
    for key, sent in (("secret", {"Authorization": "Bearer secret"}), ("", {})):
        typed = [sys.executable, "-c", code]
        ended = subprocess.run(
            typed, cwd=ROOT, env=os.environ | {"API_KEY": key}, capture_output=True, text=True, check=True
        )
        assert ended.stdout.strip() == str(sent)
