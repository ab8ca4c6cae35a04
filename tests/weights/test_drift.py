"""The drift monitor, run as a processing job would run it, on answers of the real service."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from loadtests import s3_server
from models import drift

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def captured(content: str, when: datetime, encoding: str = "JSON") -> str:
    """A line as SageMaker's data capture writes it."""
    output = {"observedContentType": "application/json", "mode": "OUTPUT", "data": content, "encoding": encoding}
    event = {"eventId": "0", "inferenceTime": when.strftime("%Y-%m-%dT%H:%M:%SZ")}
    return json.dumps({"captureData": {"endpointOutput": output}, "eventMetadata": event, "eventVersion": "0"})


def answer(*names: str, confidence: float = 0.85) -> str:
    return json.dumps({"images": [{"results": [{"name": n, "confidence": confidence} for n in names]}]})


def mounted(base: Path, lines: list[str], baseline: dict[str, Any]) -> Path:
    for name, file, text in (
        ("captured/recognition/all/2026/11/26/11", "a.jsonl", "\n".join(lines)),
        ("baseline", "report.json", json.dumps(baseline)),
    ):
        folder = base / "processing" / name
        folder.mkdir(parents=True)
        (folder / file).write_text(text)
    return base


def day(base: Path, lines: list[str], baseline: dict[str, Any] | None = None) -> dict[str, Any]:
    """The report of a job."""
    assert drift.main("recognition", mounted(base, lines, baseline or {})) == 0
    content: dict[str, Any] = json.loads((base / "processing" / "report" / "report.json").read_text())
    assert json.loads((base / "output" / "message").read_text()) == {k: content[k] for k in ("photos", "drift")}
    return content


def test_it_reads_what_the_service_answers(client: httpx.Client, bus: bytes, tmp_path: Path) -> None:
    sent = client.post("/invocations", content=bus, headers={"Content-Type": "image/jpeg"})
    list_ = client.post("/invocations", params={"format": "coco"}, content=bus, headers={"Content-Type": "image/jpeg"})
    lines = [captured(sent.text, NOW), captured(list_.text, NOW), captured("/9j/", NOW, "BASE64")]
    made = day(tmp_path, lines)
    assert made["photos"] == 1
    found = [r["name"] for r in sent.json()["images"][0]["results"]]
    assert made["classes"] == pytest.approx({n: found.count(n) / len(found) for n in set(found)})
    assert made["objects"] == {str(min(len(found), drift.MANY)): 1}
    assert sum(made["confidence"].values()) == pytest.approx(1)
    assert made["drift"] == {}, "nothing to compare with"


def test_only_the_last_day_counts(tmp_path: Path) -> None:
    old = [captured(answer("car"), NOW - timedelta(hours=24))] * 300
    new = [captured(answer("bus"), NOW - timedelta(hours=23)), captured(answer("bus", "bus"), NOW)]
    made = day(tmp_path, old + new)
    assert made["photos"] == 2
    assert made["classes"] == {"bus": 1}
    assert made["objects"] == {"1": 0.5, "2": 0.5}
    assert made["until"] == NOW.isoformat()


def test_a_day_without_photos_is_no_error(tmp_path: Path) -> None:
    made = day(tmp_path, [])
    assert made["photos"] == 0
    assert made["until"] is None


def test_drift_becomes_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = day(tmp_path / "1", [captured(answer("car"), NOW)] * 150 + [captured(answer("bus"), NOW)] * 50)
    lines = [captured(answer("car"), NOW)] * 50 + [captured(answer("bus", confidence=0.3), NOW)] * 150
    with s3_server.bucket() as bucket:
        monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.endpoint)
        made = day(tmp_path / "2", lines, accepted)
        assert made["drift"] == pytest.approx({"classes": 0.5, "confidence": 0.75, "objects": 0})
        found = boto3.client("cloudwatch").list_metrics(Namespace="Recognition")["Metrics"]
    assert sorted(d["Value"] for m in found for d in m["Dimensions"] if d["Name"] == "Distribution") == sorted(
        made["drift"]
    )
    assert {d["Value"] for m in found for d in m["Dimensions"] if d["Name"] == "EndpointName"} == {"recognition"}


def test_too_few_photos_are_not_judged(tmp_path: Path) -> None:
    accepted = day(tmp_path / "1", [captured(answer("car"), NOW)] * drift.LEAST)
    made = day(tmp_path / "2", [captured(answer("bus"), NOW)] * (drift.LEAST - 1), accepted)
    assert made["drift"] == {}
