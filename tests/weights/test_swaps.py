"""Weights from S3, swapped under load; the long form is `make drill-weights`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import psutil
import pytest

from loadtests import s3_server
from loadtests.drills.swaps import REASONS, Operator, asking, judge
from loadtests.drills.weights_versions import Versions
from loadtests.service import Service, command, config, free_port, running
from serve_app.weights.identity import Pinned
from tests.graph.test_reconfigure import eventually


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


def test_a_new_replica_serves_what_the_others_do_when_its_orders_are_refused(live: Live) -> None:
    """It is told to serve what was refused; it must neither fail to start nor go back to the weights of the start."""
    good = live.versions.good()
    assert live.operator.swap("new", good.uri).seen == "live"
    assert live.operator.swap("NaN", live.versions.broken("NaN")).seen == "not_finite"
    family = psutil.Process(live.service.pid).children(recursive=True)
    victim = next(p for p in family if "Ingress" in command(p))
    seen = len(live.service.lines)
    victim.kill()
    assert eventually(lambda: any(f"weights live: {good.uri}" in line for line in live.service.lines[seen:]))
    assert eventually(lambda: model(live.service)["sha256"] == good.sha256)


def test_the_judge_sees_what_is_wrong() -> None:
    """The drill's own verdict: old weights after the new ones were seen, unknown ones, and failures all count."""
    from loadtests.drills.swaps import Answers, Outcome

    outcomes = [Outcome("new", "live", "live", 1.0, began=10.0, ended=12.0, live="b")]
    good = [(1.0, 2.0, 200, "a"), (9.0, 10.5, 200, "b"), (11.0, 11.5, 200, "a"), (12.5, 13.0, 200, "b")]
    bad = [(12.5, 13.0, 200, "a"), (1.0, 2.0, 200, "b"), (5.0, 6.0, 200, "c"), (3.0, 4.0, 503, "")]
    assert judge(Answers(good), outcomes, "a") == (0, 0)
    for row, expected in zip(bad, itertools.chain([(0, 1)] * 3, [(1, 0)]), strict=True):
        assert judge(Answers([*good, row]), outcomes, "a") == expected
