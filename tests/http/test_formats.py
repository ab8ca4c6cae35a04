"""The answer in other forms: fractions, COCO results, a drawn photo; and one image that fails among several."""

from __future__ import annotations

import io
import re
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from serve_app.http.coco import CATEGORY_IDS, category_ids


def ask(client: httpx.Client, *photos: bytes, **params: Any) -> httpx.Response:
    return client.post("/v1/predict", params=params, files=[("file", p) for p in photos])


def test_normalized_corners_are_fractions_of_the_same_boxes(client: httpx.Client, bus: bytes) -> None:
    pixels = ask(client, bus).json()["images"][0]["results"]
    fractions = ask(client, bus, normalize=True, decimals=8).json()["images"][0]["results"]
    for one, other in zip(pixels, fractions, strict=True):
        scaled = {k: v * (810 if k[0] == "x" else 1080) for k, v in other["box"].items()}
        assert scaled == pytest.approx(one["box"], abs=0.01)


@pytest.mark.parametrize("decimals", [0, 1, 5])
def test_decimals(client: httpx.Client, bus: bytes, decimals: int) -> None:
    corners = [v for r in ask(client, bus, decimals=decimals).json()["images"][0]["results"] for v in r["box"].values()]
    assert corners == [round(v, decimals) for v in corners]
    assert decimals == 0 or any(v != round(v, decimals - 1) for v in corners)


def test_coco_results(client: httpx.Client, bus: bytes, zidane: bytes) -> None:
    plain = ask(client, bus, zidane).json()["images"]
    lines = ask(client, bus, zidane, format="coco").json()
    assert [line["image_id"] for line in lines] == [0] * len(plain[0]["results"]) + [1] * len(plain[1]["results"])
    for line, result in zip(lines, plain[0]["results"] + plain[1]["results"], strict=True):
        box = result["box"]
        assert line["category_id"] == CATEGORY_IDS[result["name"]]
        assert line["bbox"] == pytest.approx(
            [box["x1"], box["y1"], box["x2"] - box["x1"], box["y2"] - box["y1"]], abs=0.02
        )
        assert line["score"] == pytest.approx(result["confidence"], abs=1e-3)


def test_cocos_ids_have_gaps() -> None:
    assert len(CATEGORY_IDS) == 80
    assert [CATEGORY_IDS[n] for n in ("person", "bus", "fire hydrant", "stop sign", "toothbrush")] == [1, 6, 11, 13, 90]


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (("bus", "person"), [6, 1]),
        (("toothbrush",), [90]),
        (("person", "helmet", "bus"), [1, 2, 3]),
        (("Person", "Bus"), [1, 2]),
        (("", "人", "bus"), [1, 2, 3]),
        (tuple(f"part {i}" for i in range(100)), list(range(1, 101))),
    ],
)
def test_category_ids_are_cocos_if_it_has_all_classes_else_counted(names: tuple[str, ...], ids: list[int]) -> None:
    assert category_ids(names) == ids


def test_the_photo_with_its_boxes(client: httpx.Client, bus: bytes) -> None:
    answer = ask(client, bus, format="image")
    assert answer.headers["content-type"] == "image/jpeg"
    assert len(answer.headers["x-model-sha256"]) == 64
    drawn = np.asarray(Image.open(io.BytesIO(answer.content)), int)
    original = np.asarray(Image.open(io.BytesIO(bus)), int)
    changed = np.abs(drawn - original).max(2) > 60
    assert drawn.shape == original.shape
    box = next(r["box"] for r in ask(client, bus).json()["images"][0]["results"] if r["name"] == "bus")
    edge = changed[round(box["y1"]) + 50 : round(box["y2"]) - 50, round(box["x1"]) : round(box["x1"]) + 6]
    assert edge.any(axis=1).mean() > 0.7, "the left edge of the bus is a line"
    assert changed.mean() < 0.2, "the rest of the photo is as it was"


def test_a_drawn_answer_is_of_one_image(client: httpx.Client, bus: bytes) -> None:
    answer = ask(client, bus, bus, format="image")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")


def test_one_image_may_fail_among_several(client: httpx.Client, bus: bytes, zidane: bytes) -> None:
    answer = ask(client, bus, b"no image", zidane, zidane[:3000])
    assert answer.status_code == 200
    good, text, also_good, cut = answer.json()["images"]
    assert "bus" in [r["name"] for r in good["results"]]
    assert "person" in [r["name"] for r in also_good["results"]]
    assert "error" not in good
    assert text == {"results": [], "error": text["error"]}
    assert (text["error"]["status"], text["error"]["code"]) == (415, "unsupported_format")
    assert (cut["error"]["status"], cut["error"]["code"]) == (400, "corrupt_image")
    assert cut["error"]["detail"].startswith("the image is empty, damaged or cut off")


def test_when_all_images_fail_the_request_does(client: httpx.Client) -> None:
    answer = ask(client, b"no image", b"none either")
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_format")


def test_coco_has_no_place_for_a_failed_image(client: httpx.Client, bus: bytes) -> None:
    answer = ask(client, bus, bus[:3000], format="coco")
    assert (answer.status_code, answer.json()["code"]) == (400, "corrupt_image")


def test_server_timing_adds_up(client: httpx.Client, bus: bytes) -> None:
    header = ask(client, bus).headers["server-timing"]
    times = {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", header)}
    assert set(times) == {"preprocess", "queue", "detect", "postprocess", "total"}
    assert 0 < sum(ms for name, ms in times.items() if name != "total") <= times["total"]
    assert re.search(r'detect;dur=[\d.]+;desc="\w+"', header), "which replica it was"


def test_every_answer_has_the_security_headers(client: httpx.Client) -> None:
    for path in ("/", "/livez", "/v1/models", "/nothing", "/docs"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in client.get(path, headers={"Origin": "https://evil.test"}).headers


def test_sagemaker_contract(client: httpx.Client, bus: bytes) -> None:
    assert client.get("/ping").status_code == 200
    answer = client.post("/invocations", content=bus, headers={"Content-Type": "text/csv"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_format")
    for kind in ("image/jpeg", "application/x-image"):  # the second is what SageMaker's own algorithms take
        answer = client.post("/invocations", content=bus, headers={"Content-Type": kind})
        assert "bus" in [r["name"] for r in answer.json()["images"][0]["results"]]
