"""Weights from S3, swapped under load; the long form is `make drill-weights`."""

from __future__ import annotations

import itertools
import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import httpx
import psutil
import pytest

from loadtests import s3_server
from loadtests.drills.swaps import REASONS, Operator, asking, judge
from loadtests.drills.weights_versions import Versions
from loadtests.service import Service, command, config, free_port, ray_files, running
from serve_app.weights.identity import Pinned
from tests.conftest import eventually


class Live(NamedTuple):
    """A service with weights from S3, and who may change them."""

    service: Service
    operator: Operator
    versions: Versions
    first: Pinned
    bucket: s3_server.Bucket


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("swaps")
    with s3_server.bucket() as bucket:
        versions = Versions(bucket, folder)
        first = versions.good()
        args = {
            "weights": "s3://weights/road5.pt",
            "s3_endpoint_url": bucket.endpoint,
            "weights_cache": str(folder / "cache"),
        }
        content = config(free_port(), **args)
        with running(content) as service:
            yield Live(service, Operator(service, content, first.sha256), versions, first, bucket)


def model(service: Service) -> dict[str, Any]:
    answer = httpx.get(f"{service.url}/v1/models", timeout=60)
    return answer.json()["models"][0] if answer.status_code == 200 else {"sha256": None}  # while its replica restarts


def test_it_starts_with_the_latest_pinned_and_downloads_it_once(live: Live) -> None:
    shown = model(live.service)
    assert (shown["uri"], shown["version"], shown["sha256"]) == (live.first.uri, live.first.version, live.first.sha256)
    assert (shown["previous"], shown["loading"], shown["refused"]) == (None, None, [])
    assert len(live.bucket.requests("GET", "road5.pt?")) == 1
    steps = next(line for line in live.service.lines if "fetch" in line and live.first.uri in line)
    assert all(f"{step} " in steps for step in ("fetch", "verify", "load", "warm", "golden"))


def test_swaps_under_load(live: Live) -> None:
    """One good, every broken one, and back to the first: nothing failed, nothing mislabelled."""
    good = live.versions.good()
    with asking(live.service.url, pause_s=0.3) as answers:
        outcomes = [live.operator.swap("new", good.uri)]
        outcomes += [live.operator.swap(kind, live.versions.broken(kind)) for kind in REASONS]
        outcomes.append(live.operator.swap("back", live.first.uri))
    assert [(o.kind, o.seen) for o in outcomes] == [(o.kind, o.wanted) for o in outcomes]
    assert answers.rows
    assert judge(answers, outcomes, live.first.sha256) == (0, 0)


def test_refusals_are_shown_with_their_reason(live: Live) -> None:
    refused = model(live.service)["refused"]
    assert all(r["at"] and r["uri"].startswith("s3://") and r["detail"] for r in refused)
    assert {r["reason"] for r in refused} == set(REASONS.values())
    for reason in REASONS.values():
        assert any(f"weights refused ({reason})" in line for line in live.service.lines)


def test_names_of_any_script_reach_the_answer_and_break_nothing(live: Live, bus: bytes) -> None:
    """Their class names and S3 key are not ASCII, or look like syntax. The emulated S3 takes no line ends in a key."""
    names, file = ("Fußgänger", "人 #1%", 'a\nb"}', "🚌", "{{x}}"), "Straße 7/Modell #ä%20?人.pt"
    stem = file[9:-3]
    assert live.operator.swap("new", live.versions.named(names, file).uri).seen == "live"
    with httpx.Client(base_url=live.service.url, timeout=60) as http:
        answer = http.post("/v1/predict", files={"file": bus})
        assert {"Fußgänger", "🚌"} <= {r["name"] for r in answer.json()["images"][0]["results"]}
        assert answer.json()["metadata"]["model"]["name"] == unquote(answer.headers["X-Model-Name"]) == stem
        drawn = http.post("/v1/predict?format=image", files={"file": bus})
        assert (drawn.status_code, drawn.content[:2]) == (200, b"\xff\xd8")
        source = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [b64encode(bus).decode()]}
        infer = http.post(f"/v2/models/{quote(stem, safe='')}/infer", json={"inputs": [source]})
        assert "🚌" in next(o["data"] for o in infer.json()["outputs"] if o["name"] == "class_names")
        coco = http.post("/v1/predict?format=coco", files={"file": bus}).json()
        assert {names[line["category_id"] - 1] for line in coco} >= {"Fußgänger", "🚌"}
        chosen = http.post("/v1/predict", params={"classes": "🚌"}, files={"file": bus}).json()
        assert {r["name"] for r in chosen["images"][0]["results"]} == {"🚌"}
        assert http.get("/").status_code == 200
    shown = model(live.service)
    assert tuple(shown["classes"].values()) == names
    assert (shown["name"], live.operator.swap("back", live.first.uri).seen) == (stem, "live")
    labels = (r'class_name="Fu\\xdfg\\xe4nger"', r'class_name="\\U0001f68c"')
    eventually(lambda: all(label in exported(live.service) for label in labels))
    eventually(lambda: "\\u4eba" in exported(live.service))
    assert not [line for line in live.service.lines if "a metric was not recorded" in line or "Traceback" in line]


def exported(service: Service) -> str:
    """What Ray gives Prometheus, of all its processes that listen: two services share the port of the autoscaler."""
    found = json.loads((ray_files(service) / "prom_metrics_service_discovery.json").read_text())
    texts = []
    for target in (target for one in found for target in one["targets"]):
        with suppress(httpx.TransportError):
            texts.append(httpx.get(f"http://{target}/metrics", timeout=60, trust_env=False).text)
    return "".join(texts)


def test_a_new_replica_serves_what_the_others_do_when_its_orders_are_refused(live: Live) -> None:
    """It is told to serve what was refused; it must neither fail to start nor go back to the weights of the start."""
    good = live.versions.good()
    assert live.operator.swap("new", good.uri).seen == "live"
    assert live.operator.swap("NaN", live.versions.broken("NaN")).seen == "not_finite"
    family = psutil.Process(live.service.pid).children(recursive=True)
    victim = next(p for p in family if "Ingress" in command(p))
    seen = len(live.service.lines)
    victim.kill()
    eventually(lambda: any(f"weights live: {good.uri}" in line for line in live.service.lines[seen:]))
    eventually(lambda: model(live.service)["sha256"] == good.sha256)


def test_the_judge_sees_what_is_wrong() -> None:
    """The drill's own verdict: old weights after the new ones were seen, unknown ones, and failures all count."""
    from loadtests.drills.swaps import Answers, Outcome

    outcomes = [Outcome("new", "live", "live", 1.0, began=10.0, ended=12.0, live="b")]
    good = [(1.0, 2.0, 200, "a"), (9.0, 10.5, 200, "b"), (11.0, 11.5, 200, "a"), (12.5, 13.0, 200, "b")]
    bad = [(12.5, 13.0, 200, "a"), (1.0, 2.0, 200, "b"), (5.0, 6.0, 200, "c"), (3.0, 4.0, 503, "")]
    assert judge(Answers(good), outcomes, "a") == (0, 0)
    for row, expected in zip(bad, itertools.chain([(0, 1)] * 3, [(1, 0)]), strict=True):
        assert judge(Answers([*good, row]), outcomes, "a") == expected
