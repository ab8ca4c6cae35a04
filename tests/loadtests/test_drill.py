"""Each event of the drill once; `make drill` does them twenty times."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from functools import partial

import pytest

from loadtests.drills import drill, observation
from loadtests.drills.drill import KNOWN_LIMITATIONS
from loadtests.drills.events import KILLED, Operator, local
from loadtests.drills.half_failures import EVENTS
from loadtests.drills.observation import BAD, content_of, observe
from loadtests.traffic import Row, Traffic, same, stall
from tests.conftest import ONE_TRY, ROOT

CHANGES = (
    "redeploy", "change batching", "swap weights", "refused weights", "scale to 3 and back",
    "deploy that does not import", "deploy that fails its golden set", *(f"kill {name}" for name in KILLED),
)  # fmt: skip
# Each takes 40-50 s, of which the service waits most. tests/graph has their parts.
LONG = {
    "freeze HAProxy's manager for good", "freeze controller for good", "freeze weights holder for good, then swap",
    "swap, and the store cuts its answers", "swap, and the store throttles",
}  # fmt: skip


@pytest.fixture(scope="module")
def drilled() -> Iterator[tuple[Operator, Traffic]]:
    with local(ONE_TRY) as operator:
        operator.seconds = 2.0
        traffic = Traffic(operator.service.url, content_of())
        with traffic.flowing(closed=2, rate=2, pause_s=0.3):  # cores that are not full start replicas sooner
            yield operator, traffic


@pytest.mark.parametrize("name", [*CHANGES, *(name for name in EVENTS if name not in LONG)])
def test_nothing_is_lost(drilled: tuple[Operator, Traffic], name: str) -> None:
    operator, traffic = drilled
    assert set(operator.events) == set(CHANGES)
    assert set(EVENTS) > LONG
    seen = len(traffic.rows)
    bad = observe(traffic, name, operator.events.get(name) or partial(EVENTS[name], operator))
    assert any(row.verdict == "answered" for row in traffic.rows[seen:])
    if name in KNOWN_LIMITATIONS:
        assert {row.verdict for row in bad} <= {"lost"}, (
            "what a dead front held is lost, but nothing is answered wrongly"
        )
    else:
        assert bad == []


def row(sent: float, done: float, verdict: str = "answered") -> Row:
    return Row(sent, done, verdict, "", "")


def test_a_stall_is_seen_from_the_event_on() -> None:
    rows = [row(0, 1), row(1, 2), row(2, 3, "lost"), row(3, 9)]
    assert stall(rows, 1, 10) == 7
    assert stall([], 1, 10) == 9


def test_the_right_answer_is_told_from_a_wrong_one() -> None:
    bus, person = ("bus", 0.9, (0.0, 0.0, 100.0, 100.0)), ("person", 0.5, (0.0, 0.0, 10.0, 10.0))
    assert same([bus, person], [bus]), "what was not sure may be missing"
    assert same([bus], [("bus", 0.7, (1.0, 1.0, 100.0, 100.0))])
    assert not same([bus], [person])
    assert not same([bus], [("bus", 0.9, (50.0, 50.0, 150.0, 150.0))])
    assert not same([bus], [bus, ("dog", 0.95, (0.0, 0.0, 9.0, 9.0))])
    assert "answered" not in BAD


@pytest.mark.parametrize(("refused_during", "bad"), [(0, 0), (2, 0), (20, 20)])
def test_a_rise_of_refusals_is_a_failure(monkeypatch: pytest.MonkeyPatch, refused_during: int, bad: int) -> None:
    monkeypatch.setattr(observation, "CALM_S", 0.0)
    monkeypatch.setattr(observation, "SETTLE_S", 0.0)
    traffic = Traffic("http://nowhere", [])

    def upgrade() -> None:
        now = time.monotonic()
        traffic.rows += [row(now, now, "refused")] * refused_during + [row(now, now)] * 300

    assert len(observe(traffic, "upgrade", upgrade, refusals=True)) == bad
    assert observe(traffic, "upgrade", upgrade) == [], "where nobody asked for it"


def test_the_firewall_lets_the_drill_through() -> None:
    """All its requests come from one address."""
    text = (ROOT / "terraform" / "variables.tf").read_text()
    allowed = re.search(r'variable "requests_per_ip" \{[^}]*default\s*= (\d+)', text)
    assert allowed
    assert int(allowed[1]) / 300 > drill.REMOTE_CLIENTS / drill.REMOTE_PAUSE_S + drill.REMOTE_RATE
