"""The queue that the planner believes in, against systems whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loadtests.capacity import trace
from loadtests.capacity.curve import Curve, Step, follows, most_of
from loadtests.capacity.queueing import Outcome, allen_cunneen, erlang_c, simulate
from loadtests.capacity.station import Joined, Line, Observed, Station, fit, sharing
from loadtests.capacity.sweep import Offered, step_of
from loadtests.clients import Asked

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
    batched = station(0.1, max_batch=4, wait_s=0.1)
    assert batched.most == pytest.approx(40)
    assert run(batched, 1, 30, 20_000).percentile() < 0.6, "without batches it could do a third of it"


def test_batches_are_as_full_as_they_have_time_to_be() -> None:
    """At 20 a second one more comes in the 50 ms after the first; none is added while they wait for the engine."""
    batched = station(0.1, max_batch=4, wait_s=0.05)
    assert batched.most == pytest.approx(20)
    assert run(batched, 1, 18, 20_000).percentile() < 2
    assert run(batched, 1, 22, 20_000).percentile() > 10
    assert station(0.1, max_batch=4).most == pytest.approx(10), "with no time at all, of one"


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


def test_the_share_is_found_and_what_it_cost_is_taken_off() -> None:
    joined = [Joined(1, 5, after, 0.1 + 0.5 * (0.1 - after)) for after in (0.0, 0.02, 0.04)]
    late = Joined(1, 5, 0.09, 0.3)  # slow already: that is why it was joined
    assert sharing(Line(0.1, 0, 0, FIXED), [*joined, late]) == pytest.approx(0.5)
    assert [one.without(0.5) for one in joined] == pytest.approx([0.1] * 3)
    assert sharing(Line(0.1, 0, 0, FIXED), []) == 0


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


def test_a_line_is_found_and_never_falls() -> None:
    rows = [Observed(b, load, (0.1 + 0.02 * b) * (1 + 0.005 * load)) for b in (1, 2, 4) for load in (5, 10, 20)]
    line = fit(rows, slowed=0.005)
    assert (line.at, line.each) == pytest.approx((0.1, 0.02))
    assert line.mean(4, 20) == pytest.approx(0.18 * 1.1)
    assert line.ratios == pytest.approx(np.ones(9))
    assert fit([Observed(b, 1, 0.2 - 0.01 * b) for b in (1, 8)]).each == 0
    assert fit([Observed(1, 5, 0.2), Observed(1, 5, 0.4)]).mean(1, 5) == pytest.approx(0.3)


def test_the_most_is_where_the_load_is_what_it_makes_itself() -> None:
    """Service 0.05 s, and as much again at ten photos a second: at ten a second it is 0.1 s."""
    line = Line(0.05, 0.0, 0.1, FIXED)
    assert Station(NONE, line, line).most == pytest.approx(10)


def asked(sent: float, done: float, queue: float = 0.0, detect: float = 90.0, replica: str = "a") -> Asked:
    return Asked(
        sent, done, 200, {"preprocess": 10.0, "queue": queue, "detect": detect, "postprocess": 0.0}, 1, replica
    )


def run_of(rows: list[Asked], rate: float, others: float = 0.0) -> Offered:
    return Offered(rate, np.array([one.sent for one in rows]), rows, others)


def test_what_a_step_learns_from_the_order_of_answers() -> None:
    """The first finds the engine idle, until the second joins it; that ends 80 ms after it, while the third is there.

    When the second ends nothing is left for the other lane, so the third tells nothing. The last is alone.
    """
    rows = [asked(0.0, 0.1, 0, 90.0), asked(0.05, 0.18, 0, 80.5), asked(0.08, 0.25, 10, 80), asked(1.0, 1.11, 0, 91)]
    step = step_of(run_of(rows, 2), 1.5)
    assert step.joined_ms == {1: [(50.0, 90.0)]}
    assert step.alone_ms == {1: [100.0]}
    assert step.ranks == [0.5, 0.5], "the one behind, then the one alone: each the only one of its kind"
    assert step.behind_ms == {1: [80.0]}
    assert (step.sent, step.refused, step.failed, step.answered) == (4, 0, 0, 2.667)


def test_replicas_do_not_wait_for_each_other() -> None:
    """Two photos at a time, in two replicas: nothing was behind anything."""
    rows = [asked(0.0, 0.1, 0, 90.0), asked(0.01, 0.11, 0, 90.5, replica="b"), asked(0.2, 0.3, 0, 91)]
    step = step_of(run_of(rows, 2), 1)
    assert step.alone_ms == {1: [90.0, 90.0, 90.0]}
    assert step.behind_ms == {}


def test_what_is_refused_or_late_is_not_followed() -> None:
    followed = step_of(run_of([asked(n / 10, n / 10 + 0.1, detect=n) for n in range(20)], 10), 2.1)
    assert follows(followed)
    assert not follows(followed.model_copy(update={"refused": 1}))
    assert not follows(followed.model_copy(update={"answered": 5.0}))
    with pytest.raises(ValueError, match="no answer"):
        step_of(run_of([Asked(0, 1, 503, {}, 0, "")], 1), 1)


def test_a_load_that_was_too_much_tells_the_most() -> None:
    """Of two replicas that share a machine: their engines alone would do twice 20 photos a second."""
    curve = synthetic(0.05, [4.0, 6.0]).model_copy(update={"replicas": 2})
    assert most_of(curve.steps) == math.inf
    over = curve.steps[-1].model_copy(update={"offered": 40.0, "answered": 24.0, "refused": 9})
    assert most_of([*curve.steps, over]) == 24
    assert curve.station().most == pytest.approx(20, rel=0.05)
    told = curve.model_copy(update={"steps": [*curve.steps, over]}).station()
    assert told.most == pytest.approx(12, rel=0.01)
    assert told.behind.mean(1, 12) == pytest.approx(1 / 12, rel=0.01)


def synthetic(seconds: float, loads: list[float]) -> Curve:
    """A curve measured on the simulator itself."""
    steps: list[Step] = []
    for load in loads:
        rng = np.random.default_rng(int(load * 10))
        outcome = simulate(station(seconds), 1, trace.steady(load, 200).arrivals(rng), rng)
        rows = [
            Asked(
                s,
                s + latency,
                200,
                {"preprocess": 0.0, "queue": w * 1000, "detect": 1000 * seconds + n / 1e6, "postprocess": 0.0},
                1,
                "a",
            )
            for n, (s, latency, w) in enumerate(zip(outcome.sent, outcome.latency, outcome.waited, strict=True))
        ]
        steps.append(step_of(run_of(rows, load), 200))
    nothing: dict[str, str] = {}
    return Curve(
        measured="", hardware={"cores": 2}, engine=nothing, versions=nothing, mix={}, max_batch_size=1,
        batch_wait_timeout_s=0, replicas=1, steps=steps,
    )  # fmt: skip


def test_a_curve_of_low_loads_foretells_high_ones() -> None:
    found = synthetic(0.1, [2, 4, 6]).station()
    assert found.most == pytest.approx(10, rel=0.02)
    assert run(found, 1, 8.5).percentile() == pytest.approx(run(station(0.1), 1, 8.5).percentile(), rel=0.1)
