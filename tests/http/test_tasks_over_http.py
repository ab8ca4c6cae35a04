"""One application for each task, side by side in one service: answers, options and every format, over HTTP."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from loadtests.benchmarks.random_networks import CLASSES, network
from loadtests.service import config, free_port, running
from serve_app.__main__ import main
from serve_app.settings import PredictOptions
from serve_app.vision import image
from serve_app.vision.engines.checkpoint import read_checkpoint
from serve_app.vision.engines.pytorch import TorchEngine
from serve_app.vision.tasks import results
from serve_app.vision.tasks.by_name import TASKS
from serve_app.vision.tasks.task import Units, recognise
from serve_app.weights.identity import pin_file
from tests.http.test_page import CHROMIUM, drop, opened

PICTURE = "() => document.querySelector('#canvas').toDataURL('image/png')"
NAMES = {"segment": "yolov8n-seg", "pose": "yolo26n-pose", "obb": "yolo11n-obb", "classify": "yolov8n-cls"}
SIZE = 160
CONF = {"segment": 0.6, "pose": 0.6, "obb": 0.6, "classify": 0.0}


def applications(folder: Path) -> dict[str, Any]:
    """`serve_config.yaml` with an application for each task, at a path of its name."""
    content = config(free_port())
    (one,) = content["applications"]
    content["applications"] = []
    for task, name in NAMES.items():
        torch.save({"model": network(name)}, folder / f"{name}.pt")
        args = one["args"] | {"weights": str(folder / f"{name}.pt"), "precision": "float32"}
        args |= {} if task == "classify" else {"image_size": SIZE}
        deployments = [one["deployments"][0] | {"ray_actor_options": {"num_cpus": 0.2, "num_gpus": 0}}]
        made = one | {"name": task, "route_prefix": f"/{task}", "args": args, "deployments": deployments}
        content["applications"].append(made)
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with running(applications(folder)) as service, httpx.Client(base_url=service.url, timeout=90) as http:
        yield http


def send(client: httpx.Client, task: str, photo: bytes, **options: Any) -> httpx.Response:
    params = {"conf": CONF[task]} | options
    return client.post(f"/{task}/v1/predict", params=params, content=photo, headers={"Content-Type": "image/jpeg"})


def objects(client: httpx.Client, task: str, photo: bytes, **options: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = send(client, task, photo, **options).raise_for_status().json()["images"][0]["results"]
    return found


@pytest.mark.parametrize("task", NAMES)
def test_the_answer_is_that_of_the_network(client: httpx.Client, folder: Path, bus: bytes, task: str) -> None:
    engine = TorchEngine(read_checkpoint(folder / f"{NAMES[task]}.pt"), 1)
    size = 224 if task == "classify" else SIZE
    network_input, letterbox = image.prepare(bus, size, 10**8, crops=engine.task.crops)
    found = recognise(engine.task, engine([network_input])[0], letterbox, CONF[task], PredictOptions())
    wanted = results.of(found, engine.task, engine.class_names, Units())
    got = objects(client, task, bus)
    assert len(got) == len(wanted) > 1
    for one, other in zip(got[:5], wanted[:5], strict=False):
        assert one.keys() == other.keys()
        assert (one["class"], one["name"]) == (other["class"], other["name"])
        assert one["confidence"] == pytest.approx(other["confidence"], abs=0.01)
        for key in ("box", "keypoints"):
            for axis, value in other.get(key, {}).items():
                assert one[key][axis] == pytest.approx(value, abs=2)
        if "segments" in other:
            assert TASKS[task].overlap(one, other) >= 0.95
    (model,) = client.get(f"/{task}/v1/models").json()["models"]
    assert (model["task"], model["image_size"]) == (task, size)


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        ("pose", {"topk": 3}, "`topk`: only classify has this option, the task of yolo26n-pose is pose"),
        ("obb", {"masks": "false"}, "`masks`: only segment has this option"),
        ("classify", {"iou": 0.5}, "`iou`: only detect, segment, pose, obb has this option"),
        ("classify", {"retina_masks": "true"}, "`retina_masks`: only segment"),
        ("segment", {"masks": "false", "retina_masks": "true"}, "`retina_masks`: there are no masks"),
        ("classify", {"tile": "auto"}, "`tile`: only detect, segment, pose, obb has this option"),
        ("classify", {"format": "coco"}, "`format`: COCO has none for the task of yolov8n-cls, classify"),
    ],
)
def test_an_option_of_another_task_is_an_error(
    client: httpx.Client, bus: bytes, task: str, options: dict[str, Any], said: str
) -> None:
    answer = send(client, task, bus, **options)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def test_the_options_of_a_task(client: httpx.Client, bus: bytes) -> None:
    with_masks, without = objects(client, "segment", bus), objects(client, "segment", bus, masks="false")
    assert all("segments" not in one for one in without)
    assert without == [{k: v for k, v in one.items() if k != "segments"} for one in with_masks]
    fine = objects(client, "segment", bus, retina_masks="true")
    longest = max(range(len(fine)), key=lambda i: len(with_masks[i]["segments"]["x"]))
    assert len(fine[longest]["segments"]["x"]) > len(with_masks[longest]["segments"]["x"]), "a finer outline"
    assert len(objects(client, "classify", bus, topk=1)) == 1
    assert len(objects(client, "classify", bus)) == CLASSES
    fractions = objects(client, "pose", bus, normalize="true")
    assert all(0 <= v <= 1 for one in fractions for axis in ("x", "y") for v in one["keypoints"][axis])


@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
@pytest.mark.parametrize("merge", ["uncut", "greedy_nmm_ios"])
def test_tiles_of_every_task(client: httpx.Client, bus: bytes, task: str, merge: str) -> None:
    """In pixels of the photo, with everything that the task adds to a box."""
    options = {"tile": 500, "tile_merge": merge, "conf": 0.5}
    image = send(client, task, bus, **options).raise_for_status().json()["images"][0]
    assert (image["shape"], image["tiles"]) == ([1080, 810], {"side": 500, "count": 6})
    assert image["results"]
    for one in image["results"]:
        assert one.keys() == {"class", "name", "confidence", "box"} | {
            "segment": {"segments"}, "pose": {"keypoints"},
        }.get(task, set())  # fmt: skip
        for part in one.keys() & {"segments", "keypoints"}:
            assert 0 <= min(one[part]["x"], default=0) <= max(one[part]["x"], default=0) <= 810
            assert 0 <= min(one[part]["y"], default=0) <= max(one[part]["y"], default=0) <= 1080
    assert any(max(one["box"]["y1"], one["box"]["y2"]) > 700 for one in image["results"]), "also from the lower tiles"


def test_the_command_line_has_the_options_of_the_tasks(
    client: httpx.Client, bus: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "bus.jpg"
    photo.write_bytes(bus)
    command = ["predict", str(photo), "--url", f"{client.base_url}/classify".replace("//classify", "/classify")]
    assert main([*command, "--topk", "2"]) == 0
    assert "2 found" in capsys.readouterr().out
    assert main([*command, "--masks", "false"]) == 1
    assert "`masks`: only segment has this option" in capsys.readouterr().err


@pytest.mark.parametrize(("task", "kind"), [("segment", "segm"), ("pose", "keypoints"), ("obb", "segm")])
def test_coco_results_are_scored_by_pycocotools(client: httpx.Client, bus: bytes, task: str, kind: str) -> None:
    """With what was found as the truth, every result is right; without specks and what lies outside of the photo."""
    found = send(client, task, bus, format="coco", conf=0.1, iou=0.3).raise_for_status().json()
    if kind == "segm":
        shapes = [mask.merge(mask.frPyObjects(one["segmentation"], 1080, 810)) for one in found]
        found = [one for one, shape in zip(found, shapes, strict=True) if mask.area(shape) > 500]
    assert len(found) > 3
    truth = [
        one
        | {"id": i + 1, "iscrowd": 0, "area": one["bbox"][2] * one["bbox"][3]}
        | ({"num_keypoints": 17} if task == "pose" else {})
        for i, one in enumerate(found)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = {
            "images": [{"id": 0, "width": 810, "height": 1080}],
            "categories": [{"id": i + 1, "name": str(i)} for i in range(CLASSES)],
            "annotations": truth,
        }
        data.createIndex()
        scored = COCOeval(data, data.loadRes(found), kind)
        scored.params.areaRng, scored.params.areaRngLbl = [[0, 1e10]], ["all"]
        scored.evaluate()
        scored.accumulate()
    precision = scored.eval["precision"][..., -1]  # with as many detections as COCO allows
    assert precision[precision > -1].mean() > 0.95


@pytest.mark.parametrize("task", NAMES)
def test_the_photo_is_drawn_on(client: httpx.Client, bus: bytes, task: str) -> None:
    drawn = Image.open(io.BytesIO(send(client, task, bus, format="image").raise_for_status().content))
    photo = np.asarray(Image.open(io.BytesIO(bus)).convert("RGB"), int)
    assert drawn.size == (810, 1080)
    assert (np.abs(np.asarray(drawn, int) - photo).max(2) > 60).mean() > 0.005


@pytest.mark.parametrize("task", NAMES)
def test_the_open_inference_protocol_has_the_tasks_tensors(client: httpx.Client, bus: bytes, task: str) -> None:
    name = NAMES[task]
    outputs = client.get(f"/{task}/v2/models/{name}").raise_for_status().json()["outputs"]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [2], "data": [base64.b64encode(bus).decode()] * 2}
    body = {"inputs": [tensor], "parameters": {"conf": CONF[task]}}
    answer = client.post(f"/{task}/v2/models/{name}/infer", json=body).raise_for_status().json()["outputs"]
    assert [(o["name"], o["datatype"], len(o["shape"])) for o in answer] == [
        (o["name"], o["datatype"], len(o["shape"])) for o in outputs
    ]
    got = {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in answer}
    wanted = objects(client, task, bus)
    assert got["class_names"].tolist() == [one["name"] for one in wanted] * 2
    if task == "segment":
        assert got["outline_sizes"].sum() == len(got["outline_points"])
    if task == "pose":
        assert got["keypoints"].shape == (2 * len(wanted), 17, 3)
    if task == "obb":
        assert got["corners"][0].ravel().tolist() == list(wanted[0]["box"].values())


@pytest.mark.parametrize("task", NAMES)
def test_the_file_alone_says_its_task_and_its_size(folder: Path, client: httpx.Client, task: str) -> None:  # noqa: ARG001
    pinned = pin_file(str(folder / f"{NAMES[task]}.pt"))
    assert (pinned.task, pinned.image_size) == (task, TASKS[task].image_size)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("task", NAMES)
def test_the_page_shows_what_the_task_finds(client: httpx.Client, bus: bytes, task: str, tmp_path: Path) -> None:
    with opened(f"{client.base_url}/{task}/".replace("//" + task, "/" + task)) as page:
        drop(page, bus)
        expect(page.locator("tbody tr").first).to_be_visible(timeout=60_000)
        drawn = io.BytesIO(base64.b64decode(page.evaluate(PICTURE).partition(",")[2]))
        page.screenshot(path=str(tmp_path / f"{task}.png"), full_page=True)
        meters = page.locator("meter").count()
    photo = np.asarray(Image.open(io.BytesIO(bus)).convert("RGB"), int)
    changed = (np.abs(np.asarray(Image.open(drawn).convert("RGB"), int) - photo).max(2) > 60).mean()
    if task == "classify":
        assert meters == len(objects(client, task, bus, conf=0.05)) > 1
        assert changed < 0.001
    else:
        assert changed > 0.01
