"""From the answers of a service to its curve, and from that to the queue that the planner believes in."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loadtests.capacity import trace
from loadtests.capacity.curve import Curve, Step, follows, most_of
from loadtests.capacity.queueing import simulate
from loadtests.capacity.station import Joined, Line, Observed, fit, sharing
from loadtests.capacity.sweep import Offered, step_of
from loadtests.clients import Asked
from tests.loadtests.test_queueing import FIXED, run, station


def test_the_share_is_found_and_what_it_cost_is_taken_off() -> None:
    joined = [Joined(1, 5, after, 0.1 + 0.5 * (0.1 - after)) for after in (0.0, 0.02, 0.04)]
    late = Joined(1, 5, 0.09, 0.3)  # slow already: that is why it was joined
    assert sharing(Line(0.1, 0, 0, FIXED), [*joined, late]) == pytest.approx(0.5)
    assert [one.without(0.5) for one in joined] == pytest.approx([0.1] * 3)
    assert sharing(Line(0.1, 0, 0, FIXED), []) == 0


def test_a_line_is_found_and_never_falls() -> None:
    rows = [Observed(b, load, (0.1 + 0.02 * b) * (1 + 0.005 * load)) for b in (1, 2, 4) for load in (5, 10, 20)]
    line = fit(rows, slowed=0.005)
    assert (line.at, line.each) == pytest.approx((0.1, 0.02))
    assert line.mean(4, 20) == pytest.approx(0.18 * 1.1)
    assert line.ratios == pytest.approx(np.ones(9))
    assert fit([Observed(b, 1, 0.2 - 0.01 * b) for b in (1, 8)]).each == 0
    assert fit([Observed(1, 5, 0.2), Observed(1, 5, 0.4)]).mean(1, 5) == pytest.approx(0.3)


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
