"""Checkpoints as they come: trained at another size, for other photos, or no checkpoints at all."""

from __future__ import annotations

import io
import json
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from loadtests.benchmarks.random_networks import network
from serve_app.__main__ import main
from serve_app.errors import GoldenFailed, UnsafeWeights, WrongWeights
from serve_app.graph.live_weights import LiveWeights
from serve_app.http.schemas import ServedModel
from serve_app.settings import AppSettings
from serve_app.vision.engines.checkpoint import read_checkpoint
from serve_app.vision.engines.layers import DetectionModel
from serve_app.weights import cli, golden_set, loader
from serve_app.weights.golden_set import Golden
from serve_app.weights.identity import BUNDLED, pin_file


def trained(path: Path, imgsz: object, *, everywhere: bool = True, channels: int = 3) -> Path:
    """A checkpoint as Ultralytics' trainer leaves it: the size in the network's own arguments and in `train_args`."""
    network = DetectionModel("yolov8n.yaml", nc=2, ch=channels, verbose=False)
    network.args = {"imgsz": imgsz, "task": "detect"} if everywhere else {"task": "detect"}
    torch.save({"model": network, "train_args": {"epochs": 1, "imgsz": imgsz, "batch": 16}}, path)
    return path


def stated(path: Path, size: int) -> Path:
    """The same checkpoint, beside a manifest that says this size."""
    facts = {"sha256": pin_file(str(path)).sha256, "bytes": 1, "class_names": ["a", "b"], "image_size": size}
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize(
    ("imgsz", "size"), [(96, 96), (320, 320), (640, 640), (1280, 1280), (100_000, 100_000), (300, 320), ("640", 640)]
)
def test_the_size_is_that_of_the_training(tmp_path: Path, imgsz: object, size: int, everywhere: bool) -> None:
    assert pin_file(str(trained(tmp_path / "w.pt", imgsz, everywhere=everywhere))).image_size == size


def test_a_manifest_says_the_size_before_the_training_does(tmp_path: Path) -> None:
    path = stated(trained(tmp_path / "w.pt", 320), 256)
    assert pin_file(str(path)).image_size == 256


@pytest.mark.parametrize("size", [96, 320])
def test_another_size_than_the_trainings_is_logged_and_shown(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    live = LiveWeights(AppSettings(engine="torch"), str(trained(tmp_path / "w.pt", 320)), size, "detect", "cpu")
    live.switch_to(None, {1})
    shown = ServedModel.at(live.report())
    assert (shown.image_size, shown.trained_size) == (size, 320)
    assert (f"was trained at 320 px and runs at {size} px" in caplog.text) == (size != 320)


def test_another_size_than_the_manifests_is_refused(tmp_path: Path) -> None:
    path = stated(trained(tmp_path / "w.pt", 320), 256)
    pinned, content = loader.fetch(str(path), AppSettings())
    with pytest.raises(WrongWeights, match="is for 256 px, but this service runs at 320 px"):
        loader.verify(pinned, content, 320)
    loader.verify(pinned, content, 256)


def test_a_size_above_the_limit_is_refused_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "verify", str(trained(tmp_path / "w.pt", 1920))]) == 1
    assert "is for 1920 px, the service runs at 1280 at most: set `image_size`" in capsys.readouterr().err


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_a_network_for_other_photos_is_refused(tmp_path: Path, channels: int) -> None:
    path = trained(tmp_path / "w.pt", 320, channels=channels)
    with pytest.raises(WrongWeights, match=f"for photos of {channels} channels"):
        read_checkpoint(path)


def torchscript() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), file)
    return file.getvalue()


def plain_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "not weights")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"", "it is empty", id="empty"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "Git LFS pointer", id="LFS"),
        pytest.param(b"<!DOCTYPE html><title>404</title>", "HTML or XML page", id="HTML"),
        pytest.param(b"\n <html lang=en>", "HTML or XML page", id="HTML after a line"),
        pytest.param(b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "HTML or XML page", id="S3's error"),
        pytest.param(b'{"error": "not found"}', "it is JSON", id="JSON"),
        pytest.param(b'\x40\0\0\0\0\0\0\0{"__metadata__":{}}', "safetensors", id="safetensors"),
        pytest.param(b"\x08\x09\x12\x07pytorch\x1a\x05", "ONNX", id="ONNX"),
        pytest.param(b"\x1f\x8b\x08\0\0\0\0\0", "unpack it", id="gzip"),
        pytest.param(torchscript(), "TorchScript", id="TorchScript"),
        pytest.param(plain_zip(), "", id="another zip"),
        pytest.param(BUNDLED.read_bytes()[:4000], "", id="cut off"),
        pytest.param(b"\x80\x02}q\0.", "", id="a dict"),
    ],
)
def test_what_it_is_instead_is_said_without_advice_to_load_it_unsafely(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    for checkpoint in (path, io.BytesIO(content)):
        with pytest.raises(UnsafeWeights) as refused:
            read_checkpoint(checkpoint)
        assert said in str(refused.value)
        assert "weights_only" not in str(refused.value)
        assert "\n" not in str(refused.value)
    assert pin_file(str(path)).image_size == 640


def test_weights_for_another_task_are_refused_and_the_live_ones_stay(tmp_path: Path) -> None:
    live_file, other = tmp_path / "live.pt", tmp_path / "other.pt"
    for path, name in ((live_file, "yolov8n-seg"), (other, "yolo11n-pose")):
        torch.save({"model": network(name)}, path)
    live = LiveWeights(AppSettings(engine="torch"), str(live_file), 96, "segment", "cpu")
    live.switch_to(None, {1})
    torch.save({"model": network("yolo11n-seg")}, tmp_path / "newer.pt")
    live.switch_to(str(tmp_path / "newer.pt"), {1})
    assert (live.report().weights.name, live.report().refused) == ("newer", ())
    live.switch_to(str(live_file), {1})
    live.switch_to(str(other), {1})
    shown = ServedModel.at(live.report())
    assert (shown.task, shown.name) == ("segment", "live")
    assert shown.refused[-1].reason == "wrong"
    assert "is for the task pose, this service has segment" in shown.refused[-1].detail


@pytest.mark.parametrize("name", ["yolov8n-seg", "yolo11n-pose", "yolo11n-obb", "yolov8n-cls"])
def test_a_golden_set_and_a_comparison_for_each_task(
    tmp_path: Path, name: str, bus: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    file, photos, golden = tmp_path / f"{name}.pt", tmp_path / "photos", tmp_path / "golden.json"
    torch.save({"model": network(name), "train_args": {"imgsz": 160}}, file)
    photos.mkdir()
    (photos / "bus.jpg").write_bytes(bus)
    assert main(["weights", "golden", str(file), str(photos / "bus.jpg"), "--out", str(golden)]) == 0
    made = Golden.model_validate_json(golden.read_bytes())
    objects = made.photos[0].objects
    assert objects
    loaded, size = cli.load(str(file), Namespace(endpoint_url=None))
    golden_set.check(made, loaded.engine, size)
    renamed = tuple(one.model_copy(update={"name": "another"}) for one in objects)
    wrong = Golden(photos=(made.photos[0].model_copy(update={"objects": renamed}),))
    with pytest.raises(GoldenFailed):
        golden_set.check(wrong, loaded.engine, size)
    capsys.readouterr()
    assert main(["weights", "compare", str(file), str(file), str(photos), "--sheet", str(tmp_path / "sheet.jpg")]) == 0
    assert "only A 0, only B 0" in capsys.readouterr().out
    other = tmp_path / "detects.pt"
    torch.save({"model": network("yolov8n"), "train_args": {"imgsz": 160}}, other)
    assert main(["weights", "compare", str(file), str(other), str(photos)]) == 1
    assert "only one task can be compared" in capsys.readouterr().err
