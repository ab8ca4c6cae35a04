"""The command: its rows are the service's answers, what it refuses, and runs that are killed and go on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pyarrow import parquet

from loadtests.drills import interrupted_batch
from loadtests.service import ROOT
from serve_app.__main__ import main
from serve_app.batch import cli
from serve_app.vision import sample_photos
from tests.conftest import SHARED

OPTIONS = {"conf": '{"person": 0.4, "bus": 0.1}', "classes": "person,bus,car", "normalize": "true", "decimals": "4"}


def batch(*args: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command; once more if Ray itself did not start, which it gives 30 s on however busy a machine."""
    line = [sys.executable, "-m", "serve_app", "batch", *map(str, args)]
    for _ in range(2):
        ran = subprocess.run(
            line, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, env=os.environ | (env or {})
        )
        if "Ray did not start" not in ran.stderr:
            break
    return ran


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What the command says when it refuses, before it starts Ray: in this process, because its imports take 4 s."""
    monkeypatch.setattr(os, "environ", os.environ.copy())  # else later commands would take this one's ports
    monkeypatch.setattr(cli, "stop_on_signals", lambda: None)

    def said(*args: object, env: dict[str, str] | None = None) -> str:
        os.environ.update(env or {})
        assert main(["batch", *map(str, args)]) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return said


def flags(options: dict[str, str]) -> list[str]:
    return [text for name, value in options.items() for text in (f"--{name}", value)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 COCO photos and files that are hard to decode where they are present, and broken ones."""
    folder = tmp_path_factory.mktemp("photos")
    known = [
        *sorted((SHARED / "images" / "coco128-val").glob("*.jpg")),
        *sorted((SHARED / "images" / "decode").glob("*")),
    ]
    for photo in [*sample_photos.files(), *known]:
        shutil.copy(photo, folder)
    for name, content in {"empty.jpg": b"", "text.png": b"no photo", "cut.jpg": sample_photos.bus()[:9000]}.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run that has ended: its folder, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "one"
    ran = batch(photos, "--out", out, "--part", 40, "--instance", "c7i.large:0.0996/h", *flags(OPTIONS))
    assert ran.returncode == 0, ran.stderr
    return out, ran


def test_the_rows_are_the_services_answers(
    run: tuple[Path, subprocess.CompletedProcess[str]], photos: Path, client: httpx.Client
) -> None:
    rows = [row for part in sorted(run[0].glob("part-*")) for row in parquet.read_table(part).to_pylist()]
    assert {Path(row["source"]).parent for row in rows} == {photos}
    left_out = json.loads((run[0] / "_summary.json").read_text())["left_out"]
    assert len(rows) + sum(left_out.values()) == len(list(photos.iterdir()))
    for row in rows:
        photo = Path(row["source"])
        answer = client.post("/v1/predict", files={"file": photo.read_bytes()}, data=OPTIONS)
        said = answer.json()
        if answer.is_error:
            assert row["error"] == {"code": said["code"], "detail": said["detail"]}, photo
            assert row["results"] is None, photo
        else:
            (image,) = said["images"]
            assert (row["shape"], row["results"], row["error"]) == (image["shape"], image["results"], None), photo
            card = {k: v for k, v in row["model"].items() if v is not None}
            assert card == {k: v for k, v in said["metadata"]["model"].items() if k != "bundled"}


def test_tiles_are_the_services(tmp_path: Path, street: bytes, bus: bytes, client: httpx.Client) -> None:
    photos = {"bus.jpg": bus, "cut.jpg": bus[:9000], "street-1.jpg": street, "street-2.jpg": street}
    (tmp_path / "photos").mkdir()
    for name, content in photos.items():
        (tmp_path / "photos" / name).write_bytes(content)
    options = {"tile": "500", "overlap": "0.3", "tile_merge": "nmm_ios"}
    ran = batch(tmp_path / "photos", "--out", tmp_path / "out", *flags(options))
    assert ran.returncode == 0, ran.stderr
    rows = parquet.read_table(tmp_path / "out").to_pylist()
    assert [Path(row["source"]).name for row in rows] == list(photos)
    for row, content in zip(rows, photos.values(), strict=True):
        said = client.post("/v1/predict", files={"file": content}, data=options).json()
        image = said["images"][0] if "images" in said else {}
        assert (row["results"], row["tiles"]) == (image.get("results"), image.get("tiles"))
    assert [row["tiles"] and row["tiles"]["count"] for row in rows] == [6, None, 16, 16]


def test_the_summary_says_what_failed_and_what_a_million_cost(
    run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, ran = run
    summary = json.loads((out / "_summary.json").read_text())
    table = parquet.read_table(out)  # as anybody reads it: what begins with `_` is no part
    codes = [error["code"] for error in table.column("error").to_pylist() if error]
    assert summary["images"] == table.num_rows
    assert summary["failed"] == {code: codes.count(code) for code in codes}
    assert summary["failed"]["corrupt_image"] >= 2
    last = summary["last"]
    assert last["price_per_million"] == pytest.approx(0.0996 / 3600 / last["images_per_s"] * 1e6, abs=0.01)
    assert f"{table.num_rows} photos, {len(codes)} failed: corrupt_image" in ran.stdout
    assert "a million cost" in ran.stdout


def test_the_same_command_has_nothing_left_to_do(
    run: tuple[Path, subprocess.CompletedProcess[str]], photos: Path
) -> None:
    out, ran = run
    before = {part: part.stat().st_mtime_ns for part in out.glob("part-*")}
    again = batch(photos, "--out", out, *flags(OPTIONS))
    assert again.returncode == 0, again.stderr
    assert {part: part.stat().st_mtime_ns for part in out.glob("part-*")} == before
    assert "of them now" not in again.stdout
    assert next(line for line in ran.stdout.splitlines() if " failed" in line) in again.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--conf", "0.5"], "has another run, which differs in options"),
        (["--weights", "models/default.pt", *flags(OPTIONS)], "has another run, which differs in weights"),
        (["--format", "jsonl", *flags(OPTIONS)], "has another run, which differs in format"),
        (flags(OPTIONS), "has another run, which differs in settings"),
    ],
)
def test_another_run_may_not_use_the_same_folder(
    run: tuple[Path, subprocess.CompletedProcess[str]],
    photos: Path,
    args: list[str],
    says: str,
    refusal: Callable[..., str],
) -> None:
    changed = {"SERVE_CONFIG_DIFFERENCE": "applications: [{name: recognition, args: {max_image_pixels: 1000}}]"}
    assert says in refusal(photos, "--out", run[0], *args, env=changed if says.endswith("settings") else {})


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--weights", "models/none.pt"], "no weights at"),
        (["--iou", "2"], "`iou`: "),
        (["--config", "nowhere.yaml"], "cannot read nowhere.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    photos: Path, tmp_path: Path, args: list[str], says: str, refusal: Callable[..., str]
) -> None:
    assert says in refusal(photos / "bus.jpg", "--out", tmp_path / "out", *args)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--classes", "dragon"], "has no class with the name 'dragon'"),
        (["--topk", "3"], "`topk`: only classify has this option"),
        (["--weights", "pyproject.toml"], "is not a YOLO checkpoint"),
    ],
)
def test_so_is_one_that_only_the_network_shows(photos: Path, tmp_path: Path, args: list[str], says: str) -> None:
    refused = batch(photos / "bus.jpg", "--out", tmp_path / "out", *args)
    assert refused.returncode == 1
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert says in line
    assert "Traceback" not in refused.stderr
    assert not list(tmp_path.rglob("*.*"))


def test_too_many_errors_stop_a_run_and_more_allowed_ones_let_it_go_on(tmp_path: Path) -> None:
    for n in range(12):
        (tmp_path / f"{n:02d}.jpg").write_bytes(b"" if n % 2 else sample_photos.bus())
    args = tmp_path, "--out", tmp_path / "out", "--part", 2, "--format", "jsonl"
    stopped = batch(*args, "--max-errors", 2)
    assert stopped.returncode == 1
    assert "3 photos failed, corrupt_image 3: more than --max-errors" in stopped.stderr
    assert not (tmp_path / "out" / "_summary.json").exists()
    assert batch(*args, "--max-errors", 6).returncode == 0
    rows: list[Any] = [
        json.loads(x) for p in sorted((tmp_path / "out").glob("part*")) for x in p.read_text().splitlines()
    ]
    assert ["error" in row for row in rows] == [bool(n % 2) for n in range(12)]


def test_what_stops_a_stage_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(sample_photos.bus())
    (tmp_path / "list.txt").write_text("a.jpg\ns3://photos/b.jpg\n")
    nobody = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "eu-central-1", "HOME": str(tmp_path)}
    nobody |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "")
    stopped = batch(tmp_path / "list.txt", "--out", tmp_path / "out", env=nobody)
    assert stopped.returncode == 1
    assert stopped.stderr.splitlines()[-1] == "error: s3://photos/b.jpg: Unable to locate credentials"


def test_on_a_cluster_nothing_is_on_one_machines_disk(tmp_path: Path, refusal: Callable[..., str]) -> None:
    (tmp_path / "a.jpg").write_bytes(sample_photos.bus())
    said = refusal(tmp_path, "--out", tmp_path / "out", env={"RAY_ADDRESS": "127.0.0.1:1"})
    assert "is on one machine's disk, and this is a cluster: use s3:// for all" in said


def test_a_part_that_is_damaged_is_named(run: tuple[Path, subprocess.CompletedProcess[str]], photos: Path) -> None:
    part = next(run[0].glob("part-000001.*"))
    good = part.read_bytes()
    for content in (b"", good[:500]):
        part.write_bytes(content)
        refused = batch(photos, "--out", run[0], *flags(OPTIONS))
        assert refused.returncode == 1
        assert f"error: {part} is damaged: delete it" in refused.stderr
    part.write_bytes(good)


def test_a_run_that_is_killed_in_three_ways_ends_with_one_row_for_each_photo(capfd: pytest.CaptureFixture[str]) -> None:
    with interrupted_batch.bench([sample_photos.bus()], 60, ["--part", "2"]) as bench:
        failed = interrupted_batch.drill(bench, runs=1, outage_s=3, seed=5)
    assert not failed, capfd.readouterr().out
