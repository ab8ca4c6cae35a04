"""What the measurements conclude from their numbers."""

from __future__ import annotations

import pytest

from loadtests.clients import summary
from loadtests.steady import slope
from loadtests.tune import best


def test_the_smallest_batch_that_is_as_fast_wins() -> None:
    assert best({(1, 0.0): 39.0, (2, 0.0): 40.0, (8, 0.005): 40.1}) == (1, 0.0)
    assert best({(1, 0.0): 30.0, (2, 0.0): 40.0, (8, 0.005): 40.1}) == (2, 0.0)
    assert best({(8, 0.005): 40.0, (8, 0.0): 39.9}) == (8, 0.0)


def test_a_leak_is_a_slope_and_growth_at_the_start_is_none() -> None:
    flat = [(t, min(t, 100.0)) for t in range(0, 1000, 10)]
    assert slope(flat) == pytest.approx((100, 100, 0))
    leak = [(t, 50 + t / 3600 * 20) for t in range(0, 1000, 10)]
    assert slope(leak)[2] == pytest.approx(20)


def test_a_measurement_is_told_per_image() -> None:
    measured = summary([0.1] * 99 + [1.0], 10, 2, {"replica": 4.0, "idle": 0.001})
    assert (measured.rate, measured.errors, measured.cpu_ms) == (10, 2, {"replica": 40.0})
    assert measured.p50 == pytest.approx(100)
    assert measured.p99 > 900
