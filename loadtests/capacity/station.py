"""One replica as a queue with batch service, calibrated with measured times.

A photo is decoded (a delay), waits for a batch, and the engine serves the batch. A batch of b photos that finds the
engine idle has the service time F(b). One that does not ends S(b) after the batch before it. So a batch ends at
max(start + F, end of the one before + S): Lindley's recursion behind a delay.

A replica has two servers, called lanes (`CONCURRENT_BATCHES`). They share the engine: a batch that was alone slows down
once a second batch is in service (processor sharing, Kleinrock 1967). `sharing` measures by how much.

F and S are lines in the batch size. Where replicas share a GPU or cores, both grow with the arrival rate; the slope is
such that the largest rate is the measured one (curve.py). Around the lines, service times vary in the order in which
they were measured, because a machine is slow for a while, not for one batch.
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
    """One batch: its size, the arrival rate of the replica in photos/s, and its service time in seconds."""

    batch: float
    load: float
    seconds: float


class Joined(NamedTuple):
    """One batch with its service time, and the seconds from its start until another batch was in service too."""

    batch: float
    load: float
    after: float
    seconds: float

    def without(self, shared: float) -> float:
        """The service time in seconds if it had been alone."""
        return (self.seconds + shared * self.after) / (1 + shared)


@dataclass(frozen=True)
class Line:
    """A service time: (at + each x batch) (1 + slowed x load) seconds, times one of the measured ratios (sorted)."""

    at: float
    each: float
    slowed: float
    ratios: Array

    def mean(self, batch: float, load: float) -> float:
        """The mean service time in seconds."""
        return (self.at + self.each * batch) * (1 + self.slowed * load)

    def at_rank(self, batch: float, load: float, rank: float) -> float:
        """The quantile `rank` (from 0 to below 1) of the service time, in seconds."""
        return self.mean(batch, load) * float(self.ratios[int(rank * len(self.ratios))])


def fit(observed: Iterable[Observed], slowed: float = 0.0) -> Line:
    """Fits a line over the batch size by least squares; a negative slope becomes 0.

    `slowed` is the share by which one more photo/s slows the service. It is given, not fitted: a machine is 10 % faster
    or slower from one minute to the next, and that would dominate a slope from a few arrival rates.
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
    """How much longer the rest of a batch takes once another one is in service: a share of that rest, 0 to 1.

    Uses only batches joined in the first half of their service; those joined later were slow already.
    """
    early = [(one.seconds, alone.mean(one.batch, 0), one.after) for one in joined]
    early = [one for one in early if one[2] < one[1] / 2]
    rest = sum(mean - after for _, mean, after in early)
    return min(max(sum(seconds - mean for seconds, mean, _ in early) / rest, 0.0), 1.0) if rest else 0.0


@dataclass(frozen=True)
class Station:
    """One replica as a queue: how it forms batches, and its service times."""

    ready: Line  # delay until a photo can join a batch
    alone: Line  # F
    behind: Line  # S
    max_batch: int = 1
    wait_s: float = 0.0  # longest wait for a batch to fill
    lanes: int = 2  # servers: batches in service at a time
    room: float = math.inf  # photos in the replica; more are refused
    shared: float = 0.0  # see `sharing`
    ranks: Sequence[Sequence[float]] = ()  # of successive batches, one list for each step

    @property
    def most(self) -> float:
        """The largest rate in photos/s: lanes always busy, batches full, so rate = batch / S(batch, rate)."""
        slowed = self.behind.slowed
        idle = self.max_batch / self.behind.mean(self.max_batch, 0.0)
        return (math.sqrt(1 + 4 * slowed * idle) - 1) / (2 * slowed) if slowed else idle
