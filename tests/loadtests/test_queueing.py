"""The queue that the planner believes in, against systems whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loadtests.capacity import trace
from loadtests.capacity.queueing import Outcome, allen_cunneen, erlang_c, simulate
from loadtests.capacity.station import Line, Station

NONE = Line(0.0, 0.0, 0.0, np.array([1.0]))
FIXED = np.array([1.0])
EXPONENTIAL = -np.log1p(-(np.arange(20_000) + 0.5) / 20_000)  # quantiles


def station(seconds: float, ratios: np.ndarray = FIXED, **settings: object) -> Station:
    """A server that takes so long for a batch of any size."""
    line = Line(seconds, 0.0, 0.0, ratios)
    return Station(NONE, line, line, **settings)  # type: ignore[arg-type]


def run(one: Station, number: int, rate: float, requests: int = 60_000) -> Outcome:
    rng = np.random.default_rng(1)
    return simulate(one, number, trace.steady(rate, requests / rate).arrivals(rng), rng)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_m_m_1(load: float) -> None:
    """The time in the system is exponential with the mean 1 / (service rate − arrival rate)."""
    outcome = run(station(0.1, EXPONENTIAL, lanes=1), 1, 10 * load)
    mean = 0.1 / (1 - load)
    assert np.mean(outcome.latency) == pytest.approx(mean, rel=0.1)
    assert outcome.percentile() == pytest.approx(mean * math.log(20), rel=0.1)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_m_d_1(load: float) -> None:
    """Pollaczek and Khinchine: the mean wait is load x service / (2 (1 − load))."""
    outcome = run(station(0.1), 1, 10 * load)
    assert np.mean(outcome.latency) == pytest.approx(0.1 + load * 0.1 / (2 * (1 - load)), rel=0.1)


def test_several_replicas_share_like_several_servers() -> None:
    """Each request to the replica with the fewest is a little worse than one queue for all (M/M/c), never better."""
    outcome = run(station(0.1, EXPONENTIAL, lanes=1), 4, 30)
    wait = erlang_c(4, 3.0) * 0.1 / (4 - 3.0)
    assert wait + 0.1 < np.mean(outcome.latency) < 2 * wait + 0.1


def test_erlangs_own_numbers() -> None:
    assert erlang_c(1, 0.5) == pytest.approx(0.5), "of one server, its load"
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)


def test_the_formula_is_exact_where_it_should_be() -> None:
    """M/M/1: waits are exponential."""
    wait = 0.1 / (1 - 0.7) * math.log(0.7 / 0.05)
    assert allen_cunneen(station(0.1, EXPONENTIAL), 1, 7.0) == pytest.approx(wait + 0.1, rel=0.01)
    assert allen_cunneen(station(0.1), 1, 10.0) == math.inf


def test_batches_multiply_what_a_replica_can_do() -> None:
    batched = station(0.1, max_batch=4)
    assert batched.most == pytest.approx(40)
    assert run(batched, 1, 30, 20_000).percentile() < 0.6, "without batches it could do a third of it"


def test_who_waits_for_the_engine_goes_in_together() -> None:
    """Two lanes: the first two alone, then four and one."""
    outcome = simulate(station(0.1, max_batch=4), 1, np.arange(7) / 1000, np.random.default_rng(0))
    assert (outcome.sent + outcome.latency).round(3).tolist() == [0.1, 0.2, *[0.3] * 4, 0.4]


def test_a_lone_photo_waits_for_its_batch_no_longer_than_it_may() -> None:
    outcome = run(station(0.1, max_batch=8, wait_s=0.05), 1, 0.1, 200)
    assert np.median(outcome.latency) == pytest.approx(0.15)


def test_what_a_full_batch_leaves_waits_no_longer_either() -> None:
    """Ten at once in batches of eight: two are left, and nobody comes after them."""
    rng = np.random.default_rng(0)
    outcome = simulate(station(0.1, max_batch=8, wait_s=0.05), 1, np.full(10, 1.0), rng)
    assert sorted(outcome.latency.round(3).tolist()) == [0.1] * 8 + [0.2] * 2


def test_a_batch_beside_another_is_slowed_by_its_share() -> None:
    """The second comes when the first needs 60 ms more, which takes it 90."""
    both = station(0.1, shared=0.5)
    outcome = simulate(both, 1, np.array([0.0, 0.04, 1.0]), np.random.default_rng(0))
    assert outcome.latency == pytest.approx([0.13, 0.19, 0.1])
    outcome = simulate(both, 1, np.zeros(100), np.random.default_rng(0))
    assert max(outcome.latency) == pytest.approx(10.05), "only the first; what is behind it was measured so"


def test_slow_batches_one_after_the_other_are_worse_than_here_and_there() -> None:
    """The same quick and slow ones, once in runs of a hundred."""
    ratios, runs = np.array([0.6, 1.4]), [[0.0] * 100 + [0.9] * 100]
    mixed = run(station(0.1, ratios), 1, 7, 20_000)
    in_runs = run(station(0.1, ratios, ranks=runs), 1, 7, 20_000)
    assert in_runs.percentile() > 1.3 * mixed.percentile()


def test_a_full_replica_refuses() -> None:
    outcome = run(station(0.1, room=5), 1, 30, 3000)
    assert len(outcome.refused) > 0.5 * 3000
    assert max(outcome.latency) <= 0.5 + 1e-9, "what is let in waits for four others at most"


def test_the_same_seed_is_the_same_day() -> None:
    assert (
        run(station(0.1, EXPONENTIAL), 2, 15, 500).latency.tolist()
        == run(station(0.1, EXPONENTIAL), 2, 15, 500).latency.tolist()
    )


def test_the_most_is_where_the_load_is_what_it_makes_itself() -> None:
    """Service 0.05 s, and as much again at ten photos a second: at ten a second it is 0.1 s."""
    line = Line(0.05, 0.0, 0.1, FIXED)
    assert Station(NONE, line, line).most == pytest.approx(10)
