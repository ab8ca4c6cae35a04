"""Every panel and every alert against a real Prometheus beside the real service, after traffic that is known."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import httpx
import pytest

from loadtests.monitoring.prometheus import Labels, Prometheus, observed
from loadtests.raw_http import at_once
from loadtests.service import Service, config, deploy, detector, free_port
from serve_app.ops import monitoring
from tests.conftest import eventually

PANELS = [
    pytest.param(panel, id=f"{board}: {panel['title']}")
    for board, content in monitoring.source("dashboards").items()
    for panel in content["panels"]
]
ALERTS = monitoring.source("alerts")["alerts"]
SERVES = 'ray_serve_num_http_requests_total{method="POST"}'
DROPPED = "sum(haproxy_process_dropped_logs_total)"
WAITING = 20  # images at a time; the rest of a burst is refused
BURST = 80
GOOD, CUT, NO_IMAGE, WRONG = 20, 20, 10, 10
METRIC = re.compile(r"\b((?:ray|haproxy|kube|kuberay|autoscaler)_\w+|recognition:\w+:\w+)")
Answers = Counter[int]


class Seen(NamedTuple):
    """What Prometheus saw, what clients got in all, and since when (Unix time) every series has known all of it."""

    service: Service
    prometheus: Prometheus
    statuses: Answers
    since: float


def send(url: str, bus: bytes) -> Answers:
    """Sends good photos, damaged ones, other bytes, wrong options and a burst; returns the statuses."""
    jpeg = {"Content-Type": "image/jpeg"}
    with httpx.Client(base_url=url, timeout=90, headers=jpeg) as http, ThreadPoolExecutor(20) as pool:

        def post(times: int, path: str = "/v1/predict", **how: Any) -> Iterator[int]:
            return pool.map(lambda _: http.post(path, **how).status_code, range(times))

        statuses = Counter(post(CUT, content=bus[:3000]))
        statuses += Counter(post(NO_IMAGE, content=b"hello", headers={"Content-Type": "text/plain"}))
        statuses += Counter(post(WRONG, "/v1/predict?conf=3", content=bus))
        for _ in range(GOOD // 2):
            statuses += Counter(post(2, content=bus))
    return statuses + burst(url, bus)


def burst(url: str, bus: bytes) -> Answers:
    """Sends good photos all at once; returns the statuses, most of them 503."""
    return Counter(int(answer.status) for answer in at_once(url, bus, BURST, {}))


def fires(prometheus: Prometheus, alert: str, seconds: float = 30) -> bool:
    """Whether the alert fires within this time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if alert in prometheus.firing():
            return True
        time.sleep(0.5)
    return False


def counted(prometheus: Prometheus, statuses: Answers) -> bool:
    """Whether all of it has arrived: Serve counts from HAProxy's log, which may drop lines in a burst and says so."""
    known = prometheus.value(f"sum({SERVES})") + prometheus.value(DROPPED)
    images = prometheus.value('sum(ray_recognition_images_total{code="ok"})')
    return known >= sum(statuses.values()) and images == statuses[200]


@pytest.fixture(scope="module")
def seen(bus: bytes) -> Iterator[Seen]:
    if not shutil.which("prometheus"):
        pytest.skip("no Prometheus")
    content = config(free_port(), weights="models/default.pt", max_waiting_images=WAITING)
    with observed(content) as (service, prometheus):
        # Before the traffic: Serve starts a new HAProxy after a deploy, and that one has forgotten what it dropped.
        detector(content)["user_config"] = {"max_batch_size": -1}
        deploy(service, content)
        # Else the next one may come before Serve has begun with this one.
        eventually(lambda: any("user_config refused" in line for line in service.lines))
        detector(content)["user_config"] = {"max_batch_size": 1, "weights": "models/none.pt"}
        deploy(service, content)
        eventually(lambda: prometheus.now('ray_recognition_weights_swaps_total{outcome!="live"}'))
        statuses = send(service.url, bus)
        eventually(lambda: counted(prometheus, statuses))
        prometheus.window = "5m"  # on a busy machine the traffic may be older than Grafana's minute
        since = time.time()  # a rate does not know what a counter began with: it is right about what comes now
        statuses += send(service.url, bus)
        eventually(lambda: counted(prometheus, statuses))
        for _ in range(10):  # of a busy machine, HAProxy may drop the lines of all that was refused in a burst
            if fires(prometheus, "AvailabilityBurnsFast"):
                break
            statuses += burst(service.url, bus)
            eventually(partial(counted, prometheus, statuses))
        assert "AvailabilityBurnsFast" in prometheus.firing()
        yield Seen(service, prometheus, statuses, since)


def test_all_targets_are_up(seen: Seen) -> None:
    prometheus = seen.prometheus
    eventually(lambda: len(prometheus.targets()) == 4)  # Ray's node, its autoscaler, its dashboard; and HAProxy


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_has_data(panel: dict[str, Any], seen: Seen) -> None:
    prometheus = seen.prometheus
    for legend, expr in panel["queries"].items():
        found = prometheus.now(expr)
        if "needs" in panel:
            assert panel["needs"] in ("gpu", "cluster")
            assert found == [], f"{panel['title']}: does not need a {panel['needs']}"
            continue
        assert found, f"{legend}: {expr}"
        for label in re.findall(r"{{(\w+)}}", legend):
            assert all(label in labels for labels, _ in found) or label == "version", "a legend without its label"


def test_the_counters_are_those_of_the_traffic(seen: Seen) -> None:
    prometheus, statuses = seen.prometheus, seen.statuses
    assert statuses[503] > 20, "the bursts were too small for this machine"
    by_status = {
        int(labels["status_code"]): value for labels, value in prometheus.now(f"sum by (status_code) ({SERVES})")
    }
    missing = {status: sent - by_status.pop(status) for status, sent in statuses.items()}
    assert by_status == {}
    assert min(missing.values()) >= 0
    assert sum(missing.values()) <= prometheus.value(DROPPED), "what HAProxy did not log, and nothing else"
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


def by_label(found: list[tuple[Labels, float]], label: str) -> list[tuple[str, float]]:
    return [(labels[label], value) for labels, value in found]


def growth(prometheus: Prometheus, window: str, at: float) -> dict[str, float]:
    """What a rate can know of each status: how much its counters grew between two samples of the window before `at`."""
    grown = f"sum by (status_code) (max_over_time({SERVES}[{window}]) - min_over_time({SERVES}[{window}]))"
    return dict(by_label(prometheus.now(grown, at), "status_code"))


def of(board: str, title: str) -> dict[str, str]:
    queries: dict[str, str] = next(p for p in monitoring.source("dashboards")[board]["panels"] if p["title"] == title)[
        "queries"
    ]
    return queries


def test_what_the_panels_show_is_true(seen: Seen) -> None:
    prometheus = seen.prometheus
    shown = {q: prometheus.now(expr) for q, expr in of("capacity", "Replicas").items()}
    assert [value for _, value in shown["healthy"] + shown["wanted"]] == [1, 1]
    assert prometheus.value(of("batching", "Images in a batch")["mean"]) == pytest.approx(1)
    full = prometheus.value(of("batching", "Batches, of max_batch_size")["full"])
    assert full == pytest.approx(100, abs=1), "Ray takes the middle of the bucket"
    busy = prometheus.value(of("batching", "Batches in an engine at a time (two at most)")["{{replica}}"])
    assert 0 < busy <= 2.1
    (query,) = of("service", "Predictions by status").values()
    now = time.time()
    window = f"{now - seen.since + 5:.0f}s"
    # Both at the same moment: a second later the window's first sample may be another.
    rates = by_label(prometheus.now(query.replace("$__rate_interval", window), now), "status_code")
    # Of the counters that are those of the traffic. Not their growth: `rate` continues each counter to the edges of the
    # window by itself, on a busy machine so unevenly that shares of the two were 0.035 apart.
    known = dict(by_label(prometheus.now(f"sum by (status_code) (rate({SERVES}[{window}]))", now), "status_code"))
    assert known.keys() == dict(rates).keys()
    for status, rate in rates:
        share = rate / sum(value for _, value in rates)
        assert share == pytest.approx(known[status] / sum(known.values()), abs=0.02), status
    (query,) = of("service", "Answered, of all predictions (1 h)").values()

    def failed_as_shown() -> bool:  # a recorded ratio is as old as its last evaluation
        known = growth(prometheus, "1h", time.time())
        return 1 - prometheus.value(query) == pytest.approx(known["503"] / sum(known.values()), abs=0.05)

    eventually(failed_as_shown)
    latency = {q: prometheus.value(expr) for q, expr in of("service", "Latency of answers").items()}
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] < 60
    stages = {labels["stage"]: v for labels, v in prometheus.now(of("service", "Time in each stage, p95")["{{stage}}"])}
    assert set(stages) == {"preprocess", "detect", "postprocess"}
    assert min(stages.values()) > 0
    (live,) = prometheus.now("ray_recognition_weights_live == 1")
    (swaps,) = (prometheus.now(expr) for expr in of("upgrades", "Changes of weights, by outcome").values())
    assert {labels["outcome"]: value for labels, value in swaps} == {"live": 1, "missing": 1}
    assert live[0]["sha256"]
    assert live[0]["precision"] in ("float32", "bfloat16", "int8")


def test_the_alerts_of_this_traffic_fire_and_no_others(seen: Seen) -> None:
    prometheus = seen.prometheus
    fired = prometheus.firing()
    assert {"AvailabilityBurnsFast", "WeightsRefused", "SettingsRefused"} <= fired
    assert fired <= {"AvailabilityBurnsFast", "WeightsRefused", "SettingsRefused", "LatencyBurnsFast"}, (
        "a burst that fills the queue is slow, too"
    )


@pytest.mark.parametrize("alert", [pytest.param(one, id=one["alert"]) for one in ALERTS])
def test_every_metric_of_an_alert_exists(alert: dict[str, Any], seen: Seen) -> None:
    prometheus = seen.prometheus
    missing = {name for name in METRIC.findall(alert["expr"]) if not prometheus.now(f"count({name})")}
    assert not missing or "needs" in alert, missing


def test_every_dashboard_is_made_and_has_its_queries() -> None:
    boards = [json.loads(text) for one in monitoring.objects()[1:] for text in one["data"].values()]
    assert {board["uid"] for board in boards} == {f"recognition-{name}" for name in monitoring.source("dashboards")}
    assert all(panel["targets"] and panel["fieldConfig"]["defaults"]["unit"] for b in boards for panel in b["panels"])
