"""The Open Inference Protocol v2, asked by Triton's own client."""

from __future__ import annotations

import base64
import warnings

import httpx
import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # gevent, which this client brings, warns about other libraries
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
    from tritonclient.utils import InferenceServerException


@pytest.fixture
def triton(server: str) -> InferenceServerClient:
    return InferenceServerClient(httpx.URL(server).netloc.decode(), network_timeout=60, connection_timeout=60)


@pytest.fixture
def model(client: httpx.Client) -> str:
    return client.get("/v1/models").json()["models"][0]["name"]


def tensor(*photos: bytes, binary: bool) -> InferInput:
    image = InferInput("image", [len(photos)], "BYTES")
    content = photos if binary else [base64.b64encode(p) for p in photos]
    image.set_data_from_numpy(np.array(content, dtype=np.object_), binary_data=binary)
    return image


def test_health_and_metadata(triton: InferenceServerClient, model: str) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready(model)
    assert triton.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = triton.get_model_metadata(model)
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [o["name"] for o in metadata["outputs"]] == ["image_index", "boxes", "scores", "class_ids", "class_names"]
    assert triton.is_model_ready(model, metadata["versions"][0])


@pytest.mark.parametrize("binary", [True, False], ids=["binary tensors", "JSON tensors"])
def test_the_same_boxes_as_the_primary_endpoint(
    triton: InferenceServerClient, client: httpx.Client, model: str, bus: bytes, zidane: bytes, binary: bool
) -> None:
    result = triton.infer(model, [tensor(bus, zidane, binary=binary)], request_id="abc", parameters={"conf": 0.5})
    plain = client.post("/v1/predict", params={"conf": 0.5}, files=[("file", bus), ("file", zidane)]).json()
    expected = [(i, r) for i, image in enumerate(plain["images"]) for r in image["results"]]
    assert result.get_response()["id"] == "abc"
    assert result.get_response()["model_version"] == plain["metadata"]["model"]["sha256"]
    assert result.as_numpy("image_index").tolist() == [i for i, _ in expected]
    assert result.as_numpy("class_ids").tolist() == [r["class"] for _, r in expected]
    assert result.as_numpy("class_names").tolist() == [r["name"] for _, r in expected]
    np.testing.assert_allclose(result.as_numpy("scores"), [r["confidence"] for _, r in expected], atol=1e-3)
    np.testing.assert_allclose(result.as_numpy("boxes"), [list(r["box"].values()) for _, r in expected], atol=0.05)


def test_the_outputs_that_were_asked_for_in_their_order(triton: InferenceServerClient, model: str, bus: bytes) -> None:
    wanted = [InferRequestedOutput("scores"), InferRequestedOutput("boxes", binary_data=False)]
    result = triton.infer(model, [tensor(bus, binary=True)], outputs=wanted)
    assert [o["name"] for o in result.get_response()["outputs"]] == ["scores", "boxes"]
    assert len(result.as_numpy("scores")) == len(result.as_numpy("boxes")) > 0


@pytest.mark.parametrize(
    "outputs",
    [
        [InferRequestedOutput("masks")],
        [InferRequestedOutput("scores"), InferRequestedOutput("scores")],
        [InferRequestedOutput("scores", class_count=3)],
    ],
    ids=["unknown", "twice", "classification"],
)
def test_outputs_that_do_not_exist(
    triton: InferenceServerClient, model: str, bus: bytes, outputs: list[InferRequestedOutput]
) -> None:
    with pytest.raises(InferenceServerException, match=r"\[400\] `outputs`: "):
        triton.infer(model, [tensor(bus, binary=True)], outputs=outputs)


def test_what_schedules_a_request_in_triton_is_ignored(triton: InferenceServerClient, model: str, bus: bytes) -> None:
    scheduled = {"priority": 1, "timeout": 5_000_000, "sequence_id": 7, "sequence_start": True, "sequence_end": True}
    for compression in (None, "gzip"):
        result = triton.infer(model, [tensor(bus, binary=True)], request_compression_algorithm=compression, **scheduled)
        assert len(result.as_numpy("scores")) > 0


@pytest.mark.parametrize(
    "change",
    [{"parameters": None}, {"outputs": None}, {"outputs": []}, {"id": None}, {"parameters": {"timeout": None}}],
)
def test_members_that_are_null_or_empty_count_as_absent(
    client: httpx.Client, model: str, bus: bytes, change: dict[str, object]
) -> None:
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(bus).decode()]}
    answer = client.post(f"/v2/models/{model}/infer", json={"inputs": [image | {"parameters": None}]} | change)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["outputs"]) == 5


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "models/resnet", None),
        ("GET", "nothing", None),
        ("POST", "models/{model}/infer", {"inputs": []}),
        ("POST", "models/{model}/infer", {"inputs": [], "outputs": 5}),
        ("PUT", "models/{model}", None),
    ],
)
def test_errors_have_the_protocols_member(
    client: httpx.Client, model: str, method: str, path: str, body: object
) -> None:
    answer = client.request(method, f"/v2/{path.format(model=model)}", json=body)
    assert answer.status_code >= 400
    assert answer.json()["error"] == answer.json()["detail"]


def test_nothing_found_is_empty_tensors(triton: InferenceServerClient, model: str, bus: bytes) -> None:
    result = triton.infer(model, [tensor(bus, binary=True)], parameters={"conf": 1.0})
    assert result.as_numpy("boxes").shape == (0, 4)


def test_another_model_or_version_is_not_found(triton: InferenceServerClient, model: str, bus: bytes) -> None:
    for name, version in (("resnet", ""), (model, "1")):
        with pytest.raises(InferenceServerException, match="404"):
            triton.infer(name, [tensor(bus, binary=True)], model_version=version)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"inputs": []}',
        b'{"inputs": [{}, {}]}',
        b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1], "data": [1.0]}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [1]}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["%"]}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": []}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGk="]}], "parameters": 5}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGk="]}], "outputs": "boxes"}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGk="]}], "outputs": [5]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGk="]}], "outputs": [{}]}',
        b'{"inputs": [{"name": "i", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 9}}]}',
        b'{"inputs": [{"name": "i", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": "9"}}]}',
    ],
)
def test_malformed_requests(client: httpx.Client, model: str, body: bytes) -> None:
    for length in (None, str(len(body))):
        headers = {"Inference-Header-Content-Length": length} if length else {}
        answer = client.post(f"/v2/models/{model}/infer", content=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request"), answer.text


@pytest.mark.parametrize("tail", [b"\x05\0\0\0abc", b"\xff\xff\xff\xff", b"\x01", b"\x01\0\0\0a\x02\0"])
def test_binary_elements_that_do_not_fit(client: httpx.Client, model: str, tail: bytes) -> None:
    head = b'{"inputs": [{"name": "i", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": %d}}]}'
    head %= len(tail)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = client.post(f"/v2/models/{model}/infer", content=head + tail, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
