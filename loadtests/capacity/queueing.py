"""Discrete-event simulation of replicas in parallel. Each replica is a queue (station.py).

`allen_cunneen` is the approximation for G/G/c of Allen and Cunneen (Allen, Probability, Statistics and Queueing Theory,
1990). It does not model batches. RESULTS.md compares both with measurements.
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

Request = tuple[float, float, int]  # seconds when it was sent and when it can join a batch, front
DRAWN = 4096  # random numbers drawn at a time
BLOCK = 50  # successive ranks: about two seconds of a busy replica


@dataclass(eq=False)
class Batch:
    """A batch in service."""

    members: list[Request]
    began: float
    end: float
    lone: bool = False  # it started on an idle engine, and no other batch is in service yet


@dataclass(eq=False)
class Replica:
    """The state of one replica: its queue, the batch that forms, and the batches in service."""

    ongoing: int = 0
    of_front: dict[int, int] = field(default_factory=dict)
    waiting: deque[Request] = field(default_factory=deque)
    filling: list[Request] = field(default_factory=list)
    in_work: list[Batch] = field(default_factory=list)
    last: Batch = field(default_factory=lambda: Batch([], -math.inf, -math.inf))
    done: int = 0
    waited_s: float = 0.0


class Outcome(NamedTuple):
    """The answered requests in the order of their answers, and the refused ones. Times are in seconds."""

    sent: Array
    latency: Array
    waited: Array  # for a batch
    refused: Array  # when the refused requests were sent

    def percentile(self, q: float = 95.0) -> float:
        """A percentile of the latency in seconds; infinite when nothing was answered."""
        return float(np.percentile(self.latency, q)) if len(self.latency) else math.inf


class Replicas:
    """Replicas behind fronts. A front is HAProxy on a node; requests go to the fronts in turn.

    A front sends each request to the replica with the fewest of its requests (`leastconn`, ties in turn). It does not
    know the requests of other fronts.
    """

    def __init__(self, station: Station, number: int, load: float, rng: np.random.Generator, fronts: int = 1) -> None:
        """`load` is the arrival rate of one replica in photos/s; the service times depend on it."""
        self.station, self.load, self.fronts, self._rng = station, load, fronts, rng
        self._turn = 0
        self.running = [Replica() for _ in range(number)]
        self.now = 0.0
        self.ongoing = 0  # requests in all replicas, including those that stop
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
        """The number of arrivals so far."""
        return self.ongoing + len(self._sent) + len(self._refused)

    def at(self, moment: float, do: Callable[..., None], *args: object) -> None:
        """Schedules a call at a moment of the simulation, in seconds."""
        heapq.heappush(self._events, (moment, next(self._numbers), do, args))

    def run(self, arrivals: Iterable[float]) -> Outcome:
        """Simulates until the last of these arrivals is answered or refused."""
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
        """Ranks in blocks as measured (moving block bootstrap, Künsch 1989); independent ones without a long run."""
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
        """Admits photos to a batch like `graph.batch_admission`: while a lane and a place in the batch are free."""
        station = self.station
        while replica.waiting and len(replica.in_work) < station.lanes:
            replica.filling.append(replica.waiting.popleft())
            if len(replica.filling) == station.max_batch:
                self._close(replica, replica.filling)
            elif len(replica.filling) == 1:
                self.at(self.now + station.wait_s, self._close, replica, replica.filling)

    def _close(self, replica: Replica, members: list[Request]) -> None:
        """Starts the service of a batch that is full or has waited `wait_s`, as Serve does."""
        if members is not replica.filling:
            return
        replica.filling = []
        station, size = self.station, len(members)
        rank = next(self._speeds[replica])  # one rank for both: a batch that is slow alone is slow behind another
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
            self.at(batch.end, self._end, replica, batch)  # a later batch has slowed it
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
    """Simulates these arrivals (seconds) on `number` replicas."""
    load = len(arrivals) / max(float(arrivals[-1]), 1e-9) / number
    return Replicas(station, number, min(load, station.most), rng, fronts).run(arrivals.tolist())


def erlang_c(servers: int, load: float) -> float:
    """The probability to wait in M/M/c. `load` is the offered load, arrival rate x service time, below `servers`."""
    terms = [load**n / math.factorial(n) for n in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last)


def allen_cunneen(station: Station, number: int, rate: float, q: float = 0.95) -> float:
    """A quantile of the latency in seconds, with batches of one; infinite from a utilisation of 1.

    Mean wait = Erlang C x service time / (servers - offered load) x (1 + squared coefficient of variation) / 2. The
    tail of the wait is exponential.
    """
    per_replica = rate / number
    service = station.behind.mean(1, per_replica)
    if (load := rate * service) >= number:
        return math.inf
    waits = erlang_c(number, load)
    mean = service / (number - load) * (1 + float(np.var(station.behind.ratios))) / 2  # of requests that wait
    tail = max(0.0, mean * math.log(waits / (1 - q)))
    return tail + station.ready.mean(1, per_replica) + station.alone.mean(1, per_replica)
