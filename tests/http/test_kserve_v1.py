"""KServe's V1 protocol."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest


@pytest.fixture
def model(client: httpx.Client) -> str:
    name: str = client.get("/v1/models").json()["models"][0]["name"]
    return name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: text,
        lambda text: {"b64": text},
        lambda text: {"image_bytes": {"b64": text}},
        lambda text: {"x": text},
    ],
    ids=["text", "b64", "image_bytes", "another name"],
)
def test_the_same_boxes_as_the_primary_endpoint(
    client: httpx.Client, model: str, bus: bytes, zidane: bytes, wrap: Any
) -> None:
    instances = [wrap(base64.b64encode(photo).decode()) for photo in (bus, zidane, bus[:3000])]
    body = {"instances": instances, "parameters": {"conf": 0.5, "classes": ["person"]}}
    answer = client.post(f"/v1/models/{model}:predict", json=body).raise_for_status().json()
    files = [("file", photo) for photo in (bus, zidane, bus[:3000])]
    plain = client.post("/v1/predict", params={"conf": 0.5, "classes": "person"}, files=files).json()
    assert list(answer) == ["predictions"]
    for got, expected in zip(answer["predictions"], plain["images"], strict=True):
        assert got["results"] == expected["results"]
        assert got.get("error") == expected.get("error")
    assert client.get(f"/v1/models/{model}").json() == {"name": model, "ready": True}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ([], 400),
        ({"instances": []}, 400),
        ({"instances": "aGk="}, 400),
        ({"instances": [5]}, 400),
        ({"instances": [{"a": {"b": {"c": "aGk="}}}]}, 400),
        ({"instances": [{"a": "aGk=", "b": "aGk="}]}, 400),
        ({"instances": ["%"]}, 400),
        ({"instances": ["aGk="], "parameters": 5}, 400),
        ({"instances": ["aGk="]}, 415),
        ({"instances": ["aGk="] * 17}, 413),
        ({"instances": ["aGk="], "parameters": {"conf": 2}}, 422),
        ({"instances": ["aGk="], "parameters": {"format": "coco"}}, 422),
    ],
)
def test_errors_have_the_protocols_member(client: httpx.Client, model: str, body: Any, status: int) -> None:
    answer = client.post(f"/v1/models/{model}:predict", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]


def test_another_model_is_not_found(client: httpx.Client) -> None:
    assert client.get("/v1/models/resnet").status_code == 404
    assert client.post("/v1/models/resnet:predict", json={"instances": ["aGk="]}).status_code == 404
