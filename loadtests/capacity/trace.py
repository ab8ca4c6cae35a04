"""Arrival rates over time: a generated day or flash crowd, or a CSV of real ones; and Poisson arrivals from them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadtests.load.shapes import SHAPES

DAY_S = 86_400.0
FIELDS = ("seconds", "requests_per_s")
Times = NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """Arrival rates (requests/s), each from its moment (seconds) to the next; the last moment is the end."""

    seconds: tuple[float, ...]
    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        steps = np.diff(self.seconds)
        if len(self.seconds) != len(self.rates) + 1 or not len(self.rates) or (steps <= 0).any() or min(self.rates) < 0:
            raise ValueError("a trace needs moments in rising order, each but the last with a rate of 0 or more")

    @property
    def length(self) -> float:
        """The length in seconds."""
        return self.seconds[-1] - self.seconds[0]

    def arrivals(self, rng: np.random.Generator) -> Times:
        """A Poisson process with these rates: sorted times in seconds, from 0 on."""
        starts, steps = np.array(self.seconds[:-1]) - self.seconds[0], np.diff(self.seconds)
        counts = rng.poisson(np.array(self.rates) * steps)
        return np.sort(np.repeat(starts, counts) + rng.random(counts.sum()) * np.repeat(steps, counts))

    def rate_at(self, moments: Times) -> Times:
        """The rate at each moment, in seconds from the start."""
        index = np.searchsorted(self.seconds, moments + self.seconds[0], side="right") - 1
        return np.array(self.rates)[np.clip(index, 0, len(self.rates) - 1)]


def steady(rate: float, seconds: float) -> Trace:
    """A constant rate."""
    return Trace((0.0, seconds), (rate,))


def daily(peak: float, length: float = DAY_S) -> Trace:
    """A day from midnight to midnight: the shape `daily` with `peak` at its busiest hour."""
    return shaped("daily", peak, length)


def flash_crowd(peak: float, length: float = DAY_S) -> Trace:
    """The same day at half the rate; at noon the rate jumps to `peak` for three minutes."""
    day = daily(peak / 2, length)
    noon, until = length / 2, length / 2 + min(180.0, length / 24)
    rows = dict(zip(day.seconds, (*day.rates, 0.0), strict=True))
    rows[until] = rows[noon]
    rows[noon] = peak
    moments = tuple(sorted(rows))
    return Trace(moments, tuple(rows[moment] for moment in moments[:-1]))


def shaped(shape: str, peak: float, length: float | None = None) -> Trace:
    """One of the load tests' shapes, stretched to `length` seconds."""
    stages = SHAPES[shape]
    ends = np.cumsum([0.0, *(stage.seconds for stage in stages)])
    ends *= (length or ends[-1]) / ends[-1]
    return Trace(tuple(ends.tolist()), tuple(stage.level * peak for stage in stages))


GENERATED = {"daily": daily, "flash-crowd": flash_crowd}


def read(path: Path) -> Trace:
    """A CSV with the columns `seconds,requests_per_s`; the last row's rate is not used. Raises OSError, ValueError."""
    rows = list(csv.DictReader(path.read_text().splitlines()))
    if not rows or set(FIELDS) - set(rows[0]):
        raise ValueError(f"{path}: needs the columns {','.join(FIELDS)}")
    moments, rates = ([float(row[field]) for row in rows] for field in FIELDS)
    return Trace(tuple(moments), tuple(rates[:-1]))


def write(trace: Trace, path: Path) -> None:
    """Writes a trace as a CSV for `read`. Raises OSError."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(FIELDS)
        rows.writerows(zip(trace.seconds, (*trace.rates, 0.0), strict=True))
