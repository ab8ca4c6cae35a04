"""One replica as a queue, calibrated from measured times.

A photo is made ready (decoded), waits for its batch, and goes through the engine. A batch b that finds the engine idle
is through after F(b); one that does not, S(b) after the batch before it. So it ends at max(start + F, end before + S):
Lindley's recursion with a delay in front. One that was alone gets on more slowly once a second one is formed beside it
(`CONCURRENT_BATCHES`; processor sharing, Kleinrock 1967), by as much as was measured (`sharing`). F and S are lines in
the size of the batch; where replicas share a GPU or cores, each photo a second slows them, so much that with the most
photos they do what was measured then (curve.py). Around the lines they vary as was measured, one after the other: a
machine is slow for a while, not for a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Observed(NamedTuple):
    """One batch: its size, the load in photos a second in a replica then, and its time in seconds."""

    batch: float
    load: float
    seconds: float


class Joined(NamedTuple):
    """One batch, and how long after it another was formed beside it."""

    batch: float
    load: float
    after: float
    seconds: float

    def without(self, shared: float) -> float:
        """Its time if it had been alone."""
        return (self.seconds + shared * self.after) / (1 + shared)


@dataclass(frozen=True)
class Line:
    """`seconds = (at + each x batch) (1 + slowed x load)`, times one of the measured ratios, which are sorted."""

    at: float
    each: float
    slowed: float
    ratios: Array

    def mean(self, batch: float, load: float) -> float:
        """In seconds."""
        return (self.at + self.each * batch) * (1 + self.slowed * load)

    def at_rank(self, batch: float, load: float, rank: float) -> float:
        """In seconds, of the `rank` x 100 % quickest."""
        return self.mean(batch, load) * float(self.ratios[int(rank * len(self.ratios))])


def fit(observed: Iterable[Observed], slowed: float = 0.0) -> Line:
    """Least squares over the batch's size; a slope that would be negative is none.

    `slowed` is the part by which one more photo a second slows it. It is told, not fitted: a machine is 10 % quicker or
    slower from one minute to the next, and a slope from a few loads is made of that.
    """
    rows = np.array(list(observed))
    batch, load, seconds = rows.T
    seconds_alone = seconds / (1 + slowed * load)
    each = float(np.polyfit(batch, seconds_alone, 1)[0]) if np.ptp(batch) > 0 else 0.0
    each = max(each, 0.0)
    at = float(np.mean(seconds_alone - each * batch))
    on_line = at + each * batch
    ratios = np.divide(seconds_alone, on_line, out=np.ones(len(rows)), where=on_line > 0)
    return Line(at, each, slowed, np.sort(ratios))


def sharing(alone: Line, joined: Iterable[Joined]) -> float:
    """By how much of what it still had to do batches took longer when another was beside them: 0 to 1.

    Of those that were joined in their first half: later on there are only those that were slow already.
    """
    early = [(one.seconds, alone.mean(one.batch, 0), one.after) for one in joined]
    early = [one for one in early if one[2] < one[1] / 2]
    rest = sum(mean - after for _, mean, after in early)
    return min(max(sum(seconds - mean for seconds, mean, _ in early) / rest, 0.0), 1.0) if rest else 0.0


@dataclass(frozen=True)
class Station:
    """One replica: how it forms batches, and the times of each step."""

    ready: Line  # until a photo can join a batch
    alone: Line  # F
    behind: Line  # S
    max_batch: int = 1
    wait_s: float = 0.0  # for a batch to fill
    lanes: int = 2  # batches in work at a time
    room: float = math.inf  # photos in it at a time; more are refused
    shared: float = 0.0  # see `sharing`
    ranks: Sequence[Sequence[float]] = ()  # of successive batches, in runs

    @property
    def most(self) -> float:
        """Photos a second when both lanes are always in use and each batch is full: rate = batch / S(batch, rate)."""
        slowed = self.behind.slowed
        idle = self.max_batch / self.behind.mean(self.max_batch, 0.0)
        return (math.sqrt(1 + 4 * slowed * idle) - 1) / (2 * slowed) if slowed else idle
