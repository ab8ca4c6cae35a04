"""More requests than the queues hold: some are answered, the rest refused in the one shape, and it passes."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from loadtests.raw_http import at_once
from tests.http.test_errors import check

BURST = 220  # 160 images may wait (max_waiting_images), so some of these find no place


def test_a_burst_is_refused_cleanly_and_the_service_recovers(server: str, bus: bytes) -> None:
    time.sleep(3)  # for its first second, until HAProxy knows the replica, a service is reached by way of Serve's proxy
    headers = {"X-Request-Id": "burst-1"}
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(at_once, server, bus, BURST, headers)
        probes = [httpx.get(f"{server}/readyz", timeout=30).status_code for _ in range(3)]
        answers = sent.result()
    after = httpx.post(f"{server}/v1/predict", files={"file": bus}, timeout=90)
    refused = [a for a in answers if a.status != 200]
    assert refused
    assert len(refused) < BURST
    late = [a for a in refused if a.status == 504]  # a machine too slow for what it queued; never too slow to say so
    assert len(late) < len(refused)
    for answer in refused:
        expected = (504, "timeout") if answer in late else (503, "overloaded")
        check(answer.status, answer.headers.get("content-type"), json.loads(answer.body), *expected)
        assert answer in late or int(answer.headers["retry-after"]) >= 1
        if "server" not in answer.headers:  # HAProxy's own
            assert answer.headers["access-control-allow-origin"] == "*", "a page may read why it was refused"
    by_haproxy = {json.loads(a.body)["request_id"] for a in refused if "server" not in a.headers}
    assert by_haproxy <= {headers["X-Request-Id"]}
    assert by_haproxy or sys.platform != "linux"
    assert after.status_code == 200
    assert set(probes) == {200}, "an overloaded pod keeps its traffic"
