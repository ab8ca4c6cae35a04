"""Every panel and every alert against a real Prometheus beside the real service, after traffic that is known."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from loadtests.monitoring.prometheus import Prometheus, observed
from loadtests.service import Service, config, deploy, detector, free_port
from serve_app.ops import monitoring

PANELS = [
    pytest.param(panel, id=f"{board}: {panel['title']}")
    for board, content in monitoring.source("dashboards").items()
    for panel in content["panels"]
]
ALERTS = monitoring.source("alerts")["alerts"]
ANSWERED = 'sum(ray_serve_num_http_requests_total{method="POST", status_code="200"})'
BURST = 260
GOOD, CUT, NO_IMAGE, WRONG = 20, 20, 10, 10
METRIC = re.compile(r"\b((?:ray|haproxy|kube|kuberay|autoscaler)_\w+|recognition:\w+:\w+)")
Answers = Counter[int]


def send(url: str, bus: bytes) -> Answers:
    """Good photos, bad ones, what is none, and a burst that is more than the service takes; returns the statuses."""
    jpeg = {"Content-Type": "image/jpeg"}
    limits = httpx.Limits(max_connections=BURST)
    with httpx.Client(base_url=url, timeout=90, limits=limits, headers=jpeg) as http, ThreadPoolExecutor(BURST) as pool:

        def post(times: int, path: str = "/v1/predict", **how: Any) -> Iterator[int]:
            return pool.map(lambda _: http.post(path, **how).status_code, range(times))

        statuses = Counter(post(CUT, content=bus[:3000]))
        statuses += Counter(post(NO_IMAGE, content=b"hello", headers={"Content-Type": "text/plain"}))
        statuses += Counter(post(WRONG, "/v1/predict?conf=3", content=bus))
        for _ in range(GOOD // 2):
            statuses += Counter(post(2, content=bus))
        return statuses + Counter(post(BURST, content=bus))


@pytest.fixture(scope="module")
def seen(bus: bytes) -> Iterator[tuple[Service, Prometheus, Answers]]:
    if not shutil.which("prometheus"):
        pytest.skip("no Prometheus")
    content = config(free_port(), weights="models/default.pt")  # quicker than COCO's, which bursts are made of
    with observed(content) as (service, prometheus):
        statuses = send(service.url, bus)
        detector(content)["user_config"] = {"max_batch_size": -1}
        deploy(service, content)
        detector(content)["user_config"] = {"max_batch_size": 1, "weights": "models/none.pt"}
        deploy(service, content)
        end = time.monotonic() + 60  # Ray reports every 10 s, Prometheus asks every 5
        while time.monotonic() < end:
            answered = prometheus.value(ANSWERED)
            refused = prometheus.now('ray_recognition_weights_swaps_total{outcome!="live"}')
            if answered == statuses[200] and refused and "AvailabilityBurnsFast" in prometheus.firing():
                break
            time.sleep(1)
        statuses += send(service.url, bus)  # again: rates are those between two samples of what is counted
        while prometheus.value(ANSWERED) < statuses[200] and time.monotonic() < end + 60:
            time.sleep(1)
        time.sleep(6)  # a last sample of the rest
        yield service, prometheus, statuses


def test_all_targets_are_up(seen: tuple[Service, Prometheus, Answers]) -> None:
    _, prometheus, _ = seen
    assert len(prometheus.targets()) == 4, "Ray's node, its autoscaler, its dashboard; and HAProxy"


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_has_data(panel: dict[str, Any], seen: tuple[Service, Prometheus, Answers]) -> None:
    _, prometheus, _ = seen
    for legend, expr in panel["queries"].items():
        found = prometheus.now(expr)
        if "needs" in panel:
            assert panel["needs"] in ("gpu", "cluster")
            assert found == [], f"{panel['title']}: does not need a {panel['needs']}"
            continue
        assert found, f"{legend}: {expr}"
        for label in re.findall(r"{{(\w+)}}", legend):
            assert all(label in labels for labels, _ in found) or label == "version", "a legend without its label"


def test_the_counters_are_those_of_the_traffic(seen: tuple[Service, Prometheus, Answers]) -> None:
    _, prometheus, statuses = seen
    assert statuses[503] > 20, "the burst was too small for this machine"
    found = prometheus.now('sum by (status_code) (ray_serve_num_http_requests_total{method="POST"})')
    by_status = {int(labels["status_code"]): value for labels, value in found}
    # Serve counts from HAProxy's log, which in a burst drops some lines (0-27 % here): `haproxy_process_dropped_logs_total`.
    assert 0.5 * statuses[503] <= by_status.pop(503) <= statuses[503]
    assert by_status == {status: sent for status, sent in statuses.items() if status != 503}
    images = {labels["code"]: v for labels, v in prometheus.now("sum by (code) (ray_recognition_images_total)")}
    assert images["ok"] == statuses[200]
    assert images["corrupt_image"] == statuses[400] == 2 * CUT
    assert prometheus.value("sum(ray_recognition_queue_seconds_count)") == statuses[200], "one for each image"
    boxes = {
        labels["class_name"]: v
        for labels, v in prometheus.now("sum by (class_name) (ray_recognition_detections_total)")
    }
    assert boxes["bus"] == statuses[200]
    assert boxes["person"] in (3 * statuses[200], 4 * statuses[200]), "as many as the weights find on bus.jpg"


def of(board: str, title: str) -> dict[str, str]:
    queries: dict[str, str] = next(p for p in monitoring.source("dashboards")[board]["panels"] if p["title"] == title)[
        "queries"
    ]
    return queries


def test_what_the_panels_show_is_true(seen: tuple[Service, Prometheus, Answers]) -> None:
    _, prometheus, statuses = seen
    shown = {q: prometheus.now(expr) for q, expr in of("capacity", "Replicas").items()}
    assert [value for _, value in shown["healthy"] + shown["wanted"]] == [1, 1]
    assert prometheus.value(of("batching", "Images in a batch")["mean"]) == pytest.approx(1)
    full = prometheus.value(of("batching", "Batches, of max_batch_size")["full"])
    assert full == pytest.approx(100, abs=1), "Ray takes the middle of the bucket"
    busy = prometheus.value(of("batching", "Batches in an engine at a time (two at most)")["{{replica}}"])
    assert 0 < busy <= 2.1
    (rates,) = (prometheus.now(expr) for expr in of("service", "Predictions by status").values())
    share = {labels["status_code"]: value / sum(v for _, v in rates) for labels, value in rates}
    for status in ("200", "400", "503"):
        assert share[status] == pytest.approx(statuses[int(status)] / sum(statuses.values()), abs=0.15)
    answered = prometheus.value(of("service", "Answered, of all predictions (1 h)")["answered"])
    failed = statuses[503] / sum(statuses.values())
    # Of the first burst a rate may not know: the counter begins with it. Of both, Serve misses some.
    assert 0.5 * (failed / 2) / (1 - failed / 2) <= 1 - answered <= failed + 0.02
    latency = {q: prometheus.value(expr) for q, expr in of("service", "Latency of answers").items()}
    assert 0.01 < latency["p50"] <= latency["p95"] <= latency["p99"] < 60
    stages = {labels["stage"]: v for labels, v in prometheus.now(of("service", "Time in each stage, p95")["{{stage}}"])}
    assert set(stages) == {"preprocess", "detect", "postprocess"}
    assert stages["postprocess"] < stages["detect"] < latency["p99"]
    (live,) = prometheus.now("ray_recognition_weights_live == 1")
    (swaps,) = (prometheus.now(expr) for expr in of("upgrades", "Changes of weights, by outcome").values())
    assert {labels["outcome"]: value for labels, value in swaps} == {"live": 1, "missing": 1}
    assert live[0]["sha256"]


def test_the_alerts_of_this_traffic_fire_and_no_others(seen: tuple[Service, Prometheus, Answers]) -> None:
    _, prometheus, _ = seen
    fired = prometheus.firing()
    assert {"AvailabilityBurnsFast", "WeightsRefused", "SettingsRefused"} <= fired
    assert fired <= {"AvailabilityBurnsFast", "WeightsRefused", "SettingsRefused", "LatencyBurnsFast"}, (
        "a burst that fills the queue is slow, too"
    )


@pytest.mark.parametrize("alert", [pytest.param(one, id=one["alert"]) for one in ALERTS])
def test_every_metric_of_an_alert_exists(alert: dict[str, Any], seen: tuple[Service, Prometheus, Answers]) -> None:
    _, prometheus, _ = seen
    missing = {name for name in METRIC.findall(alert["expr"]) if not prometheus.now(f"count({name})")}
    assert not missing or "needs" in alert, missing


def test_every_dashboard_is_made_and_has_its_queries() -> None:
    boards = [json.loads(text) for one in monitoring.objects()[1:] for text in one["data"].values()]
    assert {board["uid"] for board in boards} == {f"recognition-{name}" for name in monitoring.source("dashboards")}
    assert all(panel["targets"] and panel["fieldConfig"]["defaults"]["unit"] for b in boards for panel in b["panels"])
