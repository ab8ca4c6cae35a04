"""How many replicas: what each says of waiting, what the policy makes of it, and Serve starting one because of it."""

from __future__ import annotations

import asyncio
import csv
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from ray.serve.config import AutoscalingConfig

from loadtests.service import config, detector, free_port, status
from serve_app.graph.autoscaling import WAITED, QueueingLatency, QueueingTimer
from tests.conftest import stops_completely

TARGET_S = 0.25
RECORDED = Path(__file__).with_name("recorded_load.csv")


def wanted(replicas: int, requests: float, *waited: float) -> float:
    """By a policy of TARGET_S and 16 requests a replica."""
    metrics = {WAITED: dict(enumerate(waited))} if waited else {}
    ctx = SimpleNamespace(
        current_num_replicas=replicas, target_num_replicas=1, total_num_requests=requests,
        aggregated_metrics=metrics, config=AutoscalingConfig(target_ongoing_requests=16),
    )  # fmt: skip
    return QueueingLatency(TARGET_S)(ctx)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "replicas"),
    [
        pytest.param((2, 32, 0.0), 2, id="as many requests as wanted: Serve's own answer"),
        pytest.param((2, 48, 0.0), 3, id="more requests"),
        pytest.param((4, 16, 0.0, 0.1), 1, id="fewer, and nobody waits"),
        pytest.param((4, 16, 0.2, 0.1), 4, id="fewer, but they wait more than half of what they may"),
        pytest.param((4, 16, 0.5, 0.25), 6, id="in proportion"),
        pytest.param((4, 16, 9.0, 9.0), 8, id="at most twice as many"),
        pytest.param((4, 200, 0.3, 0.3), 12.5, id="the larger of both"),
        pytest.param((2, 16), 1, id="before the first report"),
        pytest.param((0, 16), 1, id="none there: Serve's matter"),
    ],
)
def test_the_policy(state: tuple[float, ...], replicas: float) -> None:
    assert wanted(int(state[0]), *state[1:]) == replicas


def test_a_target_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="target_s"):
        QueueingLatency(0)


def test_recorded_load() -> None:
    """One replica under 4, then 16 (it does 13), then 4 photos a second, as `waited` and `ongoing` were on two cores."""
    rows = [
        (int(r["phase"]), float(r["ongoing"]), float(r["waited_s"]))
        for r in csv.DictReader(RECORDED.read_text().splitlines())
    ]
    by_phase = {n: [wanted(1, ongoing, waited) for phase, ongoing, waited in rows if phase == n] for n in (1, 2, 3)}
    assert max(by_phase[1]) <= 1, "no more replicas than are needed"
    assert by_phase[3][-1] <= 1, "and none of them when it is over"
    queue_only = [max(1.0, ongoing / 16) for phase, ongoing, _ in rows if phase == 2]
    first = next(n for n, replicas in enumerate(by_phase[2]) if replicas > 1)
    assert by_phase[2][first] == 2, "twice as many once they wait"
    assert all(replicas <= 1 for replicas in queue_only[: first + 1]), "the number of requests alone says it later"


def test_what_a_replica_reports() -> None:
    async def run() -> None:
        waits = QueueingTimer()
        assert waits.report() == {WAITED: 0.0}, "idle"
        with waits.waiting() as wait:
            await asyncio.sleep(0.2)
            assert waits.report()[WAITED] >= 0.2, "nothing gets done: the age of what is under way"
            wait.counts, wait.worked_s = True, 0.1
        assert 0.1 <= waits.report()[WAITED] < 0.2, "less the work"
        with waits.waiting():
            await asyncio.sleep(0.01)
        assert waits.report() == {WAITED: 0.0}, "what was refused did not wait"

    asyncio.run(run())


def test_serve_starts_a_second_replica_when_photos_wait(bus: bytes) -> None:
    """Eight at a time are half of what is wanted of one replica by number: only their waiting calls for another."""
    content = config(free_port())
    door = detector(content)
    del door["num_replicas"]
    policy = {"policy_function": "serve_app.graph.autoscaling:QueueingLatency", "policy_kwargs": {"target_s": 0.02}}
    door["autoscaling_config"] = {
        "min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 16, "upscale_delay_s": 1,
        "metrics_interval_s": 1, "look_back_period_s": 5, "policy": policy,
    }  # fmt: skip
    with stops_completely(content, signal.SIGTERM) as service:
        over = threading.Event()

        def client() -> None:
            with httpx.Client(base_url=service.url, timeout=60) as http:
                while not over.is_set():
                    assert http.post("/v1/predict", content=bus, headers={"Content-Type": "image/jpeg"}).is_success

        clients = [threading.Thread(target=client) for _ in range(8)]
        for one in clients:
            one.start()
        end = time.monotonic() + 60
        while (replicas := status(service)["deployments"]["Ingress"]["target_num_replicas"]) < 2:
            if time.monotonic() > end:
                break
            time.sleep(0.5)
        over.set()
        for one in clients:
            one.join()
    assert replicas == 2
