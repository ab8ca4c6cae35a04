"""A request id found in an answer finds its line in the log, and that its trace."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
import yaml

from loadtests import clients
from loadtests.service import Service, ray_files
from tests.conftest import ROOT, SPANS, eventually

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
MOUNTED = "/tmp/ray/"  # noqa: S108 - in the pod
STAGES = {"preprocess", "queue", "detect", "postprocess"}
FLUENT_BIT = yaml.safe_load((ROOT / "kuberay" / "components" / "logs" / "fluent-bit.yaml").read_text())


def lines(service: Service) -> list[dict[str, Any]]:
    """Of all requests."""
    (pattern,) = (one["path"].removeprefix(MOUNTED) for one in FLUENT_BIT["pipeline"]["inputs"])
    files = [file for file in ray_files(service).glob(pattern) if file.name.startswith("replica_")]
    assert files, "what Fluent Bit reads is not where Serve writes"
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line for line in found if "total_ms" in line]


def line_of(service: Service, request_id: str) -> dict[str, Any]:
    (line,) = eventually(lambda: [line for line in lines(service) if line["request_id"] == request_id])
    return line


def test_a_line_tells_what_came_of_a_request(service: Service, client: httpx.Client, bus: bytes) -> None:
    answer = client.post("/v1/predict?conf=0.3", content=bus, headers={"Content-Type": "image/jpeg"})
    line = line_of(service, answer.json()["metadata"]["request_id"])
    assert line["message"] == "POST /v1/predict 200 ok"
    assert (line["status"], line["code"], line["images"], line["failed"]) == (200, "ok", 1, 0)
    assert line["detections"] == len(answer.json()["images"][0]["results"])
    assert line["model_sha256"] == answer.headers["x-model-sha256"]
    timing = dict(clients.STAGES.findall(answer.headers["server-timing"]))
    assert line["preprocess_ms"] == float(timing["preprocess"])
    assert line["detect_ms"] == float(timing["detect"])
    assert line["total_ms"] > line["detect_ms"]
    assert line["trace_id"] == "", "nothing is traced unless the configuration says so"
    assert "details" not in line
    time.strptime(line["asctime"].split(",")[0], FLUENT_BIT["parsers"][0]["time_format"].split(",")[0])


@pytest.mark.parametrize(
    ("path", "content", "status", "code"),
    [
        pytest.param("/v1/predict", b"\xff\xd8\xff cut", 400, "corrupt_image", id="no image"),
        pytest.param("/v1/predict?conf=2", b"", 422, "invalid_parameter", id="a bad option"),
        pytest.param("/v1/none", b"", 404, "not_found", id="no such path"),
        pytest.param("/v1/a%0aINFO%20forged", b"", 404, "not_found", id="a path that would be two lines"),
    ],
)  # fmt: skip
def test_a_line_tells_what_went_wrong(
    path: str, content: bytes, status: int, code: str, service: Service, client: httpx.Client
) -> None:
    answer = client.post(path, content=content, headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == status
    line = line_of(service, answer.json()["request_id"])
    assert (line["status"], line["code"]) == (status, code)
    assert line["detail"] == answer.json()["detail"]
    assert "\n" not in line["message"]


def test_who_asked_the_open_inference_protocol_is_told_too(service: Service, client: httpx.Client) -> None:
    answer = client.get("/v2/models/none", headers={"X-Request-Id": "oip-1"})
    assert answer.status_code == 404
    assert line_of(service, "oip-1")["code"] == "not_found"


def test_probes_and_pages_have_no_line(service: Service, client: httpx.Client) -> None:
    for path in ("/readyz", "/livez", "/docs", "/", "/v2/health/ready"):
        client.get(path, headers={"X-Request-Id": "quiet-1"})
    client.get("/v1/models", headers={"X-Request-Id": "loud-1"})
    line_of(service, "loud-1")
    assert not [line for line in lines(service) if line["request_id"] == "quiet-1"]


def spans_of(trace_id: str) -> dict[str, dict[str, str]]:
    return {name: attributes for trace, name, attributes in list(SPANS) if trace == trace_id}


def test_a_request_id_finds_its_line_and_its_trace(graph: Service, bus: bytes) -> None:
    headers = {"Content-Type": "image/jpeg", "X-Request-Id": "find-me"}
    answer = httpx.post(f"{graph.url}/v1/predict", content=bus, headers=headers, timeout=60)
    assert answer.json()["metadata"]["request_id"] == "find-me"
    line = line_of(graph, "find-me")
    spans = eventually(lambda: found_all(line["trace_id"]) and spans_of(line["trace_id"]))
    assert "find-me" in {attributes.get("request_id") for attributes in spans.values()}
    assert line["options"]["conf"] == 0.25
    assert line["details"][0]["found"]["bus"] == 1


def found_all(trace_id: str) -> bool:
    return spans_of(trace_id).keys() >= STAGES and any("request_id" in a for a in spans_of(trace_id).values())


def deployments_of(trace_id: str) -> set[str]:
    return {attributes["deployment"] for attributes in spans_of(trace_id).values() if "deployment" in attributes}


def test_the_callers_trace_goes_on_through_every_replica(graph: Service, bus: bytes) -> None:
    headers = {"Content-Type": "image/jpeg", "traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "mine"}
    httpx.post(f"{graph.url}/v1/predict", content=bus, headers=headers, timeout=60).raise_for_status()
    assert line_of(graph, "mine")["trace_id"] == TRACE
    eventually(lambda: found_all(TRACE) and deployments_of(TRACE) >= {"Ingress", "Preprocessor", "Detector"})
