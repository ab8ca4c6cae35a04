"""The three stages in turn, without Ray, for a network of each task: the rows in Parquet and JSON lines."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from loadtests.benchmarks.random_networks import network
from serve_app.batch import part, rows, stages
from serve_app.batch.part import Part, packed
from serve_app.batch.plan import Asked, Plan
from serve_app.batch.stages import Job, Network
from serve_app.errors import CorruptImage
from serve_app.settings import AppSettings, PredictOptions
from serve_app.vision import sample_photos
from serve_app.weights.identity import pin_file

NAMES = {
    "detect": "yolov8n", "segment": "yolov8n-seg", "pose": "yolo26n-pose", "obb": "yolo11n-obb", "classify": "yolov8n-cls",
}  # fmt: skip
SIZE = 160


def job(folder: Path, task: str, **asked: Any) -> Job:
    path = folder / f"{NAMES[task]}.pt"
    torch.save({"model": network(NAMES[task])}, path)
    pinned, options = pin_file(str(path)), PredictOptions(conf=0.0 if task == "classify" else 0.3, max_det=20)
    kinds = {"format": "parquet", "drawn": False, "options": options} | asked
    plan = Plan(
        asked=Asked(source="", weights="", **kinds), weights=pinned.uri, sha256=pinned.sha256, task=task, precision="float32",
        image_size=SIZE, images=5, part=5, left_out={},
    )  # fmt: skip
    return Job(plan, str(folder / "out"), AppSettings(precision="float32"))


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    for n, photo in enumerate(sample_photos.files()):
        (tmp_path / f"{n}.jpg").write_bytes(photo.read_bytes())
    (tmp_path / "broken.jpg").write_bytes(sample_photos.bus()[:1000])
    return [f"{tmp_path}/{name}" for name in ("0.jpg", "broken.jpg", "absent.jpg", "1.jpg", "0.jpg")]


def made(work: Job, photos: list[str], monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What the stages write for one part, on a CPU."""
    none = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": []})
    monkeypatch.setattr(stages.ray, "get_runtime_context", lambda: none)
    said = stages.finish(Network(work)(stages.decode(packed(Part(0, photos)), work)), work)
    errors = {"corrupt_image": 1, "source_unavailable": 1}
    assert (said["images"], json.loads(said["errors"][0])) == ([5], errors)
    content = Path(work.dest, work.plan.name(0)).read_bytes()
    assert rows.counted(content, work.plan.asked.format) == (5, errors)
    return content


def without_nothing(value: Any) -> Any:
    """Without the fields that are null: JSON lines leave them out."""
    if isinstance(value, dict):
        return {k: without_nothing(v) for k, v in value.items() if v is not None}
    return [without_nothing(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("task", "tile"), [*((task, None) for task in NAMES), ("segment", 500), ("obb", 500)])
def test_both_formats_have_the_same_rows(
    task: str, tile: int | None, tmp_path: Path, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"options": PredictOptions(conf=0.3, max_det=20, tile=tile)} if tile else {}
    table = parquet.read_table(pa.BufferReader(made(job(tmp_path, task, **asked), photos, monkeypatch)))
    lines = made(job(tmp_path, task, format="jsonl", **asked), photos, monkeypatch).decode().splitlines()
    found, as_json = without_nothing(table.to_pylist()), [json.loads(line) for line in lines]
    for one in [*found, *as_json]:
        one.pop("speed", None)
    assert found == as_json
    assert table.schema.remove_metadata() == rows.schema(task)
    assert [one["source"] for one in found] == photos
    assert found[0]["results"]
    assert found[0] == found[4]
    assert found[0].get("tiles") == ({"side": 500, "count": 6} if tile else None)
    assert "results" not in found[1]
    assert found[1]["error"]["code"] == "corrupt_image"
    assert {one["model"]["name"] for one in found} == {NAMES[task]}


def test_the_time_of_a_batch_counts_once_for_a_photo(
    tmp_path: Path, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven network inputs of a photo are in at most two batches of squares and one of another shape."""
    forward = stages.forward
    monkeypatch.setattr(stages, "forward", lambda loaded, batch: (forward(loaded, batch)[0], 1.0))
    work = job(tmp_path, "detect", options=PredictOptions(conf=0.3, max_det=20, tile=500))
    table = parquet.read_table(pa.BufferReader(made(work, photos, monkeypatch)))
    times = [row["inference"] for row in table.column("speed").to_pylist() if row]
    assert len(times) == 3
    assert set(times) <= {1000, 2000, 3000}


def test_drawn_photos_lie_beside_the_rows(tmp_path: Path, photos: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    photos[4] = f"{tmp_path}/{'ü' * 120}.jpg"  # 244 bytes
    Path(photos[4]).write_bytes(sample_photos.bus())
    made(job(tmp_path, "detect", drawn=True), photos, monkeypatch)
    drawn = sorted((tmp_path / "out" / "_drawn").iterdir())
    assert [one.name for one in drawn] == ["000000000-0.jpg.jpg", "000000003-1.jpg.jpg", f"000000004-{'ü' * 90}.jpg"]
    assert all(one.read_bytes().startswith(b"\xff\xd8") for one in drawn)


def test_a_bug_fails_its_photo_only(tmp_path: Path, photos: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def of(data: bytes, *_: object) -> None:
        raise ZeroDivisionError if len(data) == 1000 else CorruptImage("damaged")

    monkeypatch.setattr(stages.Preprocessor, "prepare", lambda _, data, *rest: of(data, *rest))
    table = stages.decode(packed(Part(7, photos)), job(tmp_path, "detect"))
    codes = [one.code for one in part.unpacked(table).photos]
    assert codes == ["corrupt_image", "internal_error", "source_unavailable", "corrupt_image", "corrupt_image"]
    assert "ZeroDivisionError" not in str(part.unpacked(table).photos[1])


def test_a_part_comes_out_of_its_table_as_it_went_in() -> None:
    arrays = [np.arange(12, dtype=np.uint8).reshape(2, 2, 3), np.zeros((0, 4), np.float32), "text"]
    out = part.unpacked(pa.ipc.open_stream(written(packed(Part(3, ["ü", "b", "c"], arrays)))).read_all())
    assert (out.number, out.sources, out.photos[2]) == (3, ["ü", "b", "c"], "text")
    for before, after in zip(arrays[:2], out.photos[:2], strict=True):
        np.testing.assert_array_equal(before, after)


def written(table: Any) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as stream:
        stream.write_table(table)
    return buffer.getvalue()


def test_no_more_is_read_ahead_than_wanted() -> None:
    begun: list[int] = []
    results = stages.ahead(lambda n: begun.append(n) or n * n, range(100), most=4)
    assert next(results) == 0
    assert len(begun) <= 5
    assert list(results) == [n * n for n in range(1, 100)]
