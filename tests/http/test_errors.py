"""Every way to fail: its status, its code, the one JSON shape, and a good request right after it."""

from __future__ import annotations

import http.client
import json
import pickle
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from serve_app import errors
from serve_app.errors import AppError

JSON = {"Content-Type": "application/json"}
BOUNDARY = {"Content-Type": "multipart/form-data; boundary=x"}


def part(name: str, content: bytes, filename: str | None = "a.jpg") -> bytes:
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"'
    return head.encode() + (f'; filename="{filename}"'.encode() if filename else b"") + b"\r\n\r\n" + content + b"\r\n"


FAILURES = [
    pytest.param("GET", "/nothing", {}, b"", 404, "not_found", id="no such path"),
    pytest.param("GET", "/v1/predict", {}, b"", 405, "method_not_allowed", id="GET instead of POST"),
    pytest.param("POST", "/v1/predict/", {}, b"", 404, "not_found", id="a slash too many"),
    pytest.param("GET", "/v2/models/none", {}, b"", 404, "not_found", id="no such model"),
    pytest.param("POST", "/v1/predict", {}, b"", 415, "unsupported_format", id="nothing at all"),
    pytest.param("POST", "/v1/predict", {"Content-Type": "text/plain"}, b"x", 415, "unsupported_format", id="text"),
    pytest.param("POST", "/v1/predict", {"Content-Type": "image/png"}, b"", 400, "corrupt_image", id="empty image"),
    pytest.param("POST", "/v1/predict", {"Content-Type": "image/png"}, b"x", 415, "unsupported_format", id="no image"),
    pytest.param("POST", "/v1/predict", JSON, b"{", 400, "malformed_request", id="broken JSON"),
    pytest.param("POST", "/v1/predict", JSON, b"[" * 100_000, 400, "malformed_request", id="deep JSON"),
    pytest.param("POST", "/v1/predict", JSON, b"[]", 400, "malformed_request", id="JSON that is no object"),
    pytest.param(
        "POST", "/v1/predict", JSON, b'{"source": "aGk=", "conf": 0.1, "conf": 0.9}', 400, "malformed_request", id="twice"
    ),
    pytest.param(
        "POST", "/v1/predict", JSON, b'{"source": "aGk=", "classes": [' + b"-1," * 9000 + b"0]}", 422,
        "invalid_parameter", id="9,001 classes",
    ),
    pytest.param(
        "POST", "/v1/predict", JSON, b'{"source": "aGk=", "classes": [' + b"1," * 2_000_000 + b"1]}", 400,
        "malformed_request", id="2 million classes",
    ),
    pytest.param(
        "POST", "/v1/predict", JSON, b"{" + b",".join(b'"k%d": 1' % i for i in range(50)) + b', "source": "aGk="}', 422,
        "invalid_parameter", id="50 options",
    ),
    pytest.param(
        "POST", "/v1/predict", {"Content-Type": "multipart/form-data; boundary=x; charset=unicode_escape"},
        part("\\ud800", b"x") + b"--x--", 422, "invalid_parameter", id="half a surrogate pair",
    ),
    pytest.param("POST", "/v1/predict", JSON, b"{}", 400, "malformed_request", id="JSON without source"),
    pytest.param("POST", "/v1/predict", JSON, b'{"source": []}', 400, "malformed_request", id="empty list"),
    pytest.param("POST", "/v1/predict", JSON, b'{"source": 5}', 400, "malformed_request", id="source is a number"),
    pytest.param("POST", "/v1/predict", JSON, b'{"source": "%"}', 400, "malformed_request", id="not base64"),
    pytest.param("POST", "/v1/predict", JSON, b'{"source": "aGk="}', 415, "unsupported_format", id="base64 of text"),
    pytest.param(
        "POST", "/v1/predict", JSON, b'{"source": "http://127.0.0.1/a.jpg"}', 400, "malformed_request", id="a URL"
    ),
    pytest.param("POST", "/v1/predict", BOUNDARY, b"--x--\r\n", 400, "malformed_request", id="empty form"),
    pytest.param("POST", "/v1/predict", BOUNDARY, b"garbage", 400, "malformed_request", id="form that is none"),
    pytest.param(
        "POST", "/v1/predict", {"Content-Type": "multipart/form-data"}, b"x", 400, "malformed_request", id="no boundary"
    ),
    pytest.param(
        "POST", "/v1/predict", BOUNDARY, part("photo", b"x") + b"--x--", 422, "invalid_parameter", id="other field name"
    ),
    pytest.param(
        "POST", "/v1/predict", BOUNDARY, part("file", b"x", None) + b"--x--", 400, "malformed_request", id="no filename"
    ),
    pytest.param(
        "POST", "/v1/predict", BOUNDARY, part("file", b"x") * 17 + b"--x--", 413, "payload_too_large", id="17 images"
    ),
    pytest.param(
        "POST", "/v1/predict", BOUNDARY, part("file", b"x") * 900 + b"--x--", 413, "payload_too_large", id="900 images"
    ),
    pytest.param(
        "POST", "/v1/predict", {"Content-Type": "image/png"}, bytes(20_000_001), 413, "payload_too_large", id="one byte more"
    ),
    *(
        pytest.param(
            "POST", f"/v1/predict?{query}", {"Content-Type": "image/jpeg"}, b"x", 422, "invalid_parameter", id=query
        )
        for query in (
            "conf=2", "conf=-0.1", "conf=nan", "conf=high", "iou=1.01", "max_det=0", "max_det=301",
            "confidence=0.5", "conf=0.1&conf=0.2", "conf={", 'conf={"bus": 2}', 'conf={"bus": 0.1, "bus": 0.2}',
            "conf=[0.5]", "classes=10000",
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "headers", "body", "status", "code"), FAILURES)
def test_every_failure_has_its_code_and_the_one_shape(
    client: httpx.Client,
    bus: bytes,
    method: str,
    path: str,
    headers: dict[str, str],
    body: bytes,
    status: int,
    code: str,
) -> None:
    answer = client.request(method, path, headers=headers, content=body)
    check(answer.status_code, answer.headers.get("content-type"), answer.json(), status, code)
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert client.post("/v1/predict", files={"file": bus}).status_code == 200


def check(got: int, content_type: str | None, body: dict[str, Any], status: int, code: str) -> None:
    assert (got, body.get("code")) == (status, code), body
    assert content_type == "application/problem+json"
    assert set(body) == {"type", "title", "status", "code", "detail", "request_id", "error"}
    assert body["error"] == body["detail"]
    assert body["status"] == status
    assert body["detail"]
    assert not any(trace in body["detail"] for trace in ("\n", "ray::", "File ", "Traceback")), body["detail"]


def test_a_body_that_lies_about_its_length_is_cut_off(server: str) -> None:
    """Chunked, so without Content-Length: the service stops reading at its limit."""
    address = urlsplit(server)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    chunks = (bytes(1_000_000) for _ in range(25))
    connection.request("POST", "/v1/predict", chunks, {"Content-Type": "image/png"}, encode_chunked=True)
    answer = connection.getresponse()
    check(answer.status, answer.headers["content-type"], json.loads(answer.read()), 413, "payload_too_large")
    connection.close()


def leaves(kind: type[AppError]) -> list[type[AppError]]:
    """Those of `errors.py`; others exist only where their module was imported before."""
    below = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [leaf for child in below for leaf in leaves(child)] if below else [kind]


@pytest.mark.parametrize("kind", leaves(AppError))
def test_errors_cross_processes_and_are_documented(kind: type[AppError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what happened")))
    assert (type(copy), str(copy)) == (kind, "what happened")
    row = next(line for line in (errors.__doc__ or "").splitlines() if f" {kind.__name__} " in line)
    assert f" {int(kind.status)}  {kind.code} " in row


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in leaves(AppError)]
    assert len(codes) == len(set(codes))
