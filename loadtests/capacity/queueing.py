"""Replicas side by side, simulated event by event; each is a queue (station.py).

The formula beside it is Allen and Cunneen's for G/G/c (Allen, Probability, Statistics and Queueing Theory, 1990); it
knows no batches. RESULTS.md compares both with measurements.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from loadtests.capacity.station import Array, Station

Request = tuple[float, float, int]  # sent, ready, front
DRAWN = 4096  # random numbers at a time
BLOCK = 50  # ranks: about two seconds of a busy replica


@dataclass(eq=False)
class Batch:
    """In work."""

    members: list[Request]
    began: float
    end: float
    lone: bool = False  # found the engine idle, and none is beside it yet


@dataclass(eq=False)
class Replica:
    """What is in it."""

    ongoing: int = 0
    of_front: dict[int, int] = field(default_factory=dict)
    waiting: deque[Request] = field(default_factory=deque)
    filling: list[Request] = field(default_factory=list)
    in_work: list[Batch] = field(default_factory=list)
    last: Batch = field(default_factory=lambda: Batch([], -math.inf, -math.inf))
    done: int = 0
    waited_s: float = 0.0


class Outcome(NamedTuple):
    """Of the requests in the order they were answered: when they were sent, latencies, waits for a batch; seconds."""

    sent: Array
    latency: Array
    waited: Array
    refused: Array  # when these were sent

    def percentile(self, q: float = 95.0) -> float:
        """Of the latency in seconds; infinite when nothing was answered."""
        return float(np.percentile(self.latency, q)) if len(self.latency) else math.inf


class Replicas:
    """Replicas behind fronts, requests in turn to each of those, and by each to the replica to which it has the fewest.

    A front is HAProxy on a node (`leastconn`, ties in turn): it knows only of what it has sent itself.
    """

    def __init__(self, station: Station, number: int, load: float, rng: np.random.Generator, fronts: int = 1) -> None:
        """`load` is that of one replica, in photos a second, for the lines."""
        self.station, self.load, self.fronts, self._rng = station, load, fronts, rng
        self._turn = 0
        self.running = [Replica() for _ in range(number)]
        self.now = 0.0
        self.ongoing = 0  # in all, those among them that stop
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._numbers = itertools.count()
        self._ranks = self._drawn()
        self._speeds: defaultdict[Replica, Iterator[float]] = defaultdict(self._in_blocks)
        self._sent: list[float] = []
        self._latency: list[float] = []
        self._waited: list[float] = []
        self._refused: list[float] = []

    @property
    def came(self) -> int:
        """Requests so far."""
        return self.ongoing + len(self._sent) + len(self._refused)

    def at(self, moment: float, do: Callable[..., None], *args: object) -> None:
        """Calls it at that moment."""
        heapq.heappush(self._events, (moment, next(self._numbers), do, args))

    def run(self, arrivals: Iterable[float]) -> Outcome:
        """Until the last of these requests is answered or refused."""
        coming = iter(arrivals)
        pending = next(coming, None)
        events = self._events
        while pending is not None or self.ongoing:
            if pending is not None and (not events or pending <= events[0][0]):
                self.now = pending
                self._arrive(pending)
                pending = next(coming, None)
            else:
                self.now, _, do, args = heapq.heappop(events)
                do(*args)
        return Outcome(*map(np.array, (self._sent, self._latency, self._waited, self._refused)))

    def _drawn(self) -> Iterator[float]:
        while True:
            yield from self._rng.random(DRAWN).tolist()

    def _in_blocks(self) -> Iterator[float]:
        """Ranks as they were measured one after the other (moving block bootstrap, Künsch 1989); else any."""
        runs = [run for run in self.station.ranks if len(run) > BLOCK]
        if not runs:
            yield from self._drawn()
        lengths = np.array([len(run) for run in runs])
        while True:
            run = runs[self._rng.choice(len(runs), p=lengths / lengths.sum())]
            start = int(self._rng.integers(len(run) - BLOCK))
            yield from run[start : start + BLOCK]

    def _arrive(self, sent: float) -> None:
        self._turn += 1
        front, first = self._turn % self.fronts, self._turn % max(len(self.running), 1)
        in_turn = self.running[first:] + self.running[:first]
        replica = min(in_turn, key=lambda one: one.of_front.get(front, 0), default=None)
        if replica is None or replica.ongoing >= self.station.room:
            self._refused.append(sent)
            return
        replica.ongoing += 1
        replica.of_front[front] = replica.of_front.get(front, 0) + 1
        self.ongoing += 1
        ready = sent + self.station.ready.at_rank(1, self.load, next(self._ranks))
        self.at(ready, self._ready, replica, (sent, ready, front))

    def _ready(self, replica: Replica, request: Request) -> None:
        replica.waiting.append(request)
        self._fill(replica)

    def _fill(self, replica: Replica) -> None:
        """As `serve_app.turns` lets photos into a batch: while there is a lane for it and a place in it."""
        station = self.station
        while replica.waiting and len(replica.in_work) < station.lanes:
            replica.filling.append(replica.waiting.popleft())
            if len(replica.filling) == station.max_batch:
                self._close(replica, replica.filling)
            elif len(replica.filling) == 1:
                self.at(self.now + station.wait_s, self._close, replica, replica.filling)

    def _close(self, replica: Replica, members: list[Request]) -> None:
        """As Serve does it: when the batch is full or has waited."""
        if members is not replica.filling:
            return
        replica.filling = []
        station, size = self.station, len(members)
        rank = next(self._speeds[replica])  # one for both: a batch that is slow alone is slow behind another
        alone = self.now + station.alone.at_rank(size, self.load, rank)
        last, lone = replica.last, not replica.in_work
        if last.lone and not lone:
            last.end += station.shared * (last.end - self.now)
            last.lone = False
        end = max(alone, last.end + station.behind.at_rank(size, self.load, rank))
        replica.last = Batch(members, self.now, end, lone)
        replica.in_work.append(replica.last)
        self.at(end, self._end, replica, replica.last)
        self._fill(replica)

    def _end(self, replica: Replica, batch: Batch) -> None:
        if self.now < batch.end:
            self.at(batch.end, self._end, replica, batch)  # it was delayed
            return
        members, began = batch.members, batch.began
        replica.in_work.remove(batch)
        replica.ongoing -= len(members)
        replica.done += len(members)
        self.ongoing -= len(members)
        for sent, ready, front in members:
            replica.of_front[front] -= 1
            replica.waited_s += began - ready
            self._sent.append(sent)
            self._latency.append(self.now - sent)
            self._waited.append(began - ready)
        self._fill(replica)


def simulate(station: Station, number: int, arrivals: Array, rng: np.random.Generator, fronts: int = 1) -> Outcome:
    """These requests on so many replicas."""
    load = len(arrivals) / max(float(arrivals[-1]), 1e-9) / number
    return Replicas(station, number, min(load, station.most), rng, fronts).run(arrivals.tolist())


def erlang_c(servers: int, load: float) -> float:
    """The chance to wait in M/M/c, with `load` = arrival rate x service time, below `servers`."""
    terms = [load**n / math.factorial(n) for n in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last)


def allen_cunneen(station: Station, number: int, rate: float, q: float = 0.95) -> float:
    """That quantile of the latency in seconds, batches of one; infinite above what the replicas can do.

    Mean wait = Erlang's C x service / (c - load) x (1 + squared coefficient of variation) / 2, its tail exponential.
    """
    per_replica = rate / number
    service = station.behind.mean(1, per_replica)
    if (load := rate * service) >= number:
        return math.inf
    waits = erlang_c(number, load)
    mean = service / (number - load) * (1 + float(np.var(station.behind.ratios))) / 2  # of those that wait
    tail = max(0.0, mean * math.log(waits / (1 - q)))
    return tail + station.ready.mean(1, per_replica) + station.alone.mean(1, per_replica)
