"""More requests than the queues hold: some are answered, the rest refused in the one shape, and it passes."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.http.test_errors import check

BURST = 220  # 160 images may wait (max_waiting_images), so some of these find no place


def test_a_burst_is_refused_cleanly_and_the_service_recovers(server: str, bus: bytes) -> None:
    time.sleep(3)  # for its first second, until HAProxy knows the replica, a service is reached by way of Serve's proxy
    limits = httpx.Limits(max_connections=BURST)
    with httpx.Client(base_url=server, timeout=90, limits=limits) as http, ThreadPoolExecutor(BURST) as pool:
        headers = {"X-Request-Id": "burst-1"}
        sent = [pool.submit(http.post, "/v1/predict", files={"file": bus}, headers=headers) for _ in range(BURST)]
        probes = [httpx.get(f"{server}/readyz", timeout=30).status_code for _ in range(3)]
        answers = [one.result() for one in sent]
        after = http.post("/v1/predict", files={"file": bus})
    refused = [a for a in answers if a.status_code != 200]
    assert refused
    assert len(refused) < BURST
    late = [
        a for a in refused if a.status_code == 504
    ]  # a machine too slow for what it queued; never too slow to say so
    for answer in late:
        check(answer.status_code, answer.headers.get("content-type"), answer.json(), 504, "timeout")
    assert len(late) < len(refused)
    for answer in (a for a in refused if a not in late):
        check(answer.status_code, answer.headers.get("content-type"), answer.json(), 503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
    by_haproxy = {a.json()["request_id"] for a in refused if "server" not in a.headers}
    assert by_haproxy <= {headers["X-Request-Id"]}
    assert by_haproxy or sys.platform != "linux"
    assert after.status_code == 200
    assert set(probes) == {200}, "an overloaded pod keeps its traffic"
