"""`tile` on every endpoint: small objects in large photos."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from loadtests.service import Service
from serve_app import __main__ as command_line
from tests.http.test_request_log import line_of

JPEG = {"Content-Type": "image/jpeg"}


def ask(client: httpx.Client, photo: bytes, **options: Any) -> dict[str, Any]:
    answer = client.post("/v1/predict", params=options, content=photo, headers=JPEG)
    image: dict[str, Any] = answer.raise_for_status().json()["images"][0]
    return image


def people(image: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in image["results"] if one["name"] == "person"]


def test_tiles_find_small_people_where_they_are(client: httpx.Client, bus: bytes, street: bytes) -> None:
    with Image.open(io.BytesIO(bus)) as photo:
        file = io.BytesIO()
        photo.resize((330, 440)).save(file, "JPEG", quality=95)
    alone = [one["box"] for one in people(ask(client, file.getvalue(), conf=0.4))]
    plain, tiled = ask(client, street, conf=0.25), ask(client, street, conf=0.25, tile="auto", overlap=0.4)
    assert "tiles" not in plain
    assert tiled["shape"] == plain["shape"] == [1500, 1500]
    assert tiled["tiles"]["count"] >= 9
    assert len(people(tiled)) > len(people(plain))
    scores = [one["confidence"] for one in tiled["results"]]
    assert scores == sorted(scores, reverse=True)
    found, missed = [one["box"] for one in people(tiled)], 0
    for place in range(9):
        x, y = place % 3 * 500 + 85, place // 3 * 500 + 30
        for box in alone:
            there = {"x1": box["x1"] + x, "y1": box["y1"] + y, "x2": box["x2"] + x, "y2": box["y2"] + y}
            missed += not any(all(abs(one[k] - there[k]) < 25 for k in there) for one in found)
    assert missed <= 0.2 * 9 * len(alone), (missed, len(alone))
    assert all(tiled["speed"][stage] > 0 for stage in ("preprocess", "inference", "postprocess"))


def test_a_photo_that_one_tile_holds_is_as_without_tiles(client: httpx.Client, bus: bytes) -> None:
    plain, tiled = ask(client, bus), ask(client, bus, tile=2000)
    assert tiled["tiles"] == {"side": 2000, "count": 0}
    assert tiled["results"] == plain["results"]


@pytest.mark.parametrize(
    "merge", ["uncut", "nms_iou", "nms_ios", "nmm_iou", "nmm_ios", "greedy_nmm_iou", "greedy_nmm_ios"]
)
def test_every_way_to_merge(client: httpx.Client, street: bytes, merge: str) -> None:
    image = ask(client, street, tile=500, overlap=0.25, tile_merge=merge)
    assert image["tiles"] == {"side": 500, "count": 16}
    assert image["results"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tile": 31}, "`tile`: "),
        ({"tile": 0}, "`tile`: "),
        ({"tile": 100_000}, "`tile`: "),
        ({"tile": "Auto"}, "`tile`: "),
        ({"tile": "640.5"}, "`tile`: "),
        ({"tile": "-640"}, "`tile`: Value error, must be a whole number from 32 to 20000, or `auto`"),
        ({"tile": ""}, "`tile`: Value error, must be a whole number"),
        ({"tile": 640, "overlap": 0.51}, "`overlap`: "),
        ({"tile": 640, "overlap": -0.1}, "`overlap`: "),
        ({"tile": 640, "overlap": "nan"}, "`overlap`: "),
        ({"tile": 640, "tile_merge": "wbf"}, "`tile_merge`: "),
        ({"overlap": 0.3}, "`overlap`: there are no tiles, as `tile` is not set"),
        ({"tile_merge": "nms_iou"}, "`tile_merge`: there are no tiles"),
        ({"tile": 640, "retina_masks": "true"}, "`retina_masks`: not with `tile`"),
        ({"tile": 64}, "`tile`: 64 pixels cut the image of 1500 x 1500 pixels into 841 tiles, the limit is 256"),
    ],
)
def test_what_cannot_be_is_refused(client: httpx.Client, street: bytes, options: dict[str, Any], said: str) -> None:
    answer = client.post("/v1/predict", params=options, content=street, headers=JPEG)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
    assert said in answer.json()["detail"]


def test_the_limit_is_shared_by_the_images_of_a_request(client: httpx.Client, street: bytes, bus: bytes) -> None:
    """100 tiles are allowed in one image, but not in each of three; the small image beside them is answered."""
    options = {"tile": 187, "overlap": 0.2}
    assert ask(client, street, **options)["tiles"] == {"side": 187, "count": 100}
    files = [("file", street), ("file", bus), ("file", street)]
    answer = client.post("/v1/predict", params={"tile": 400}, files=files).json()
    assert [one["tiles"]["count"] for one in answer["images"]] == [25, 12, 25]
    answer = client.post("/v1/predict", params=options, files=files).json()
    assert [one.get("error", {}).get("code") for one in answer["images"]] == [
        "invalid_parameter",
        None,
        "invalid_parameter",
    ]
    assert "the limit is 85" in answer["images"][0]["error"]["detail"]


def test_all_protocols_have_it(client: httpx.Client, street: bytes) -> None:
    wanted = ask(client, street, tile="auto")["results"]
    encoded = base64.b64encode(street).decode()
    name = client.get("/v1/models").json()["models"][0]["name"]
    in_json = client.post("/v1/predict", json={"source": encoded, "tile": "auto"}).json()
    assert in_json["images"][0]["results"] == wanted
    in_form = client.post("/v1/predict", data={"tile": "auto"}, files={"file": street}).json()
    assert in_form["images"][0]["results"] == wanted
    sagemaker = client.post("/invocations?tile=auto", content=street, headers=JPEG).json()
    assert sagemaker["images"][0]["results"] == wanted
    kserve = client.post(f"/v1/models/{name}:predict", json={"instances": [encoded], "parameters": {"tile": "auto"}})
    assert kserve.json()["predictions"][0]["results"] == wanted
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [encoded]}
    oip = client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor], "parameters": {"tile": "auto"}}).json()
    assert oip["outputs"][0]["shape"] == [len(wanted)]
    coco = client.post("/v1/predict?tile=auto&format=coco", content=street, headers=JPEG).json()
    assert [one["score"] for one in coco] == [one["confidence"] for one in wanted]
    drawn = client.post("/v1/predict?tile=auto&format=image", content=street, headers=JPEG)
    with Image.open(io.BytesIO(drawn.content)) as image:
        assert image.size == (1500, 1500)


def test_the_command_line_has_it(
    server: str, street: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], client: httpx.Client
) -> None:
    (tmp_path / "street.jpg").write_bytes(street)
    wanted = len(ask(client, street, tile=400, overlap=0.3)["results"])
    asked = ["--tile", "400", "--overlap", "0.3", "--tile_merge", "uncut"]
    assert command_line.main(["predict", str(tmp_path / "street.jpg"), "--url", server, *asked]) == 0
    assert f"{wanted} found" in capsys.readouterr().out


def test_the_log_counts_tiles(service: Service, client: httpx.Client, street: bytes) -> None:
    answer = client.post("/v1/predict?tile=400", content=street, headers=JPEG).json()
    line = line_of(service, answer["metadata"]["request_id"])
    assert (line["images"], line["tiles"]) == (1, 25)
    assert line["detections"] == len(answer["images"][0]["results"])


def test_a_tiled_photo_among_small_ones(client: httpx.Client, graph: Service, street: bytes, bus: bytes) -> None:
    """With each stage in replicas of its own: same answers, and a batch holds images of several requests."""
    wanted, small = ask(client, street, tile=300), ask(client, bus)

    def one(n: int) -> dict[str, Any]:
        with httpx.Client(base_url=graph.url, timeout=60) as http:
            return ask(http, street, tile=300) if n == 0 else ask(http, bus)

    with ThreadPoolExecutor(5) as pool:
        tiled, *others = pool.map(one, range(9))
    assert tiled["tiles"] == wanted["tiles"]
    assert max(image["batch_size"] for image in others) > 1
    for image, alone in ((tiled, wanted), *((other, small) for other in others)):
        assert json.dumps(image["results"]) == json.dumps(alone["results"])
