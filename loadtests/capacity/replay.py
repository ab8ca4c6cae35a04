"""Simulates a trace with a plan: single requests, Serve's autoscaler, and the delays of new replicas and nodes.

A replica starts on a node with room. Without one it waits for a new node: Ray's autoscaler asks for it, it boots, and
it pulls the image. A replica that stops finishes its requests. autoscaler.py says which part is Ray's own code.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from loadtests.capacity.autoscaler import Autoscaler
from loadtests.capacity.queueing import Outcome, Replica, Replicas
from loadtests.capacity.station import Array, Station
from loadtests.load.slo import Objective

CONTROL_S = 0.5  # Serve's controller decides every 0.1 s, but its delays are seconds
WINDOW_S = 60.0


@dataclass(frozen=True)
class Delays:
    """Seconds until one more replica answers, see kuberay/OPERATIONS.md. Node times are not yet measured."""

    replica_s: float = 15.0  # import, weights, engine, golden set
    ask_s: float = 5.0  # until Ray's autoscaler asks for a node
    node_s: float = 60.0  # until the node has booted
    image_s: float = 60.0  # until it has pulled the image
    idle_s: float = 900.0  # until an empty node is removed: idleTimeoutSeconds and consolidateAfter


@dataclass(eq=False)
class Node:
    """A node; `used` is its number of replicas. Times are seconds of the simulation."""

    ready: float
    used: int = 0
    empty_since: float = math.inf
    began: float = 0.0
    ended: float = math.inf


class Moment(NamedTuple):
    """The state after one run of the control loop."""

    seconds: float
    wanted: int
    running: int
    nodes: int


@dataclass
class Replayed:
    """The result of a replay; `length` is in seconds."""

    outcome: Outcome
    moments: list[Moment]
    node_hours: float
    length: float

    def windows(self, length: float = WINDOW_S) -> Iterator[tuple[float, int, int, float]]:
        """Yields (start in s, requests, refused, p95 in ms) for the requests sent in each window."""
        order = np.argsort(self.outcome.sent)
        sent, latency = self.outcome.sent[order], self.outcome.latency[order]
        for start in np.arange(0, self.length, length).tolist():
            first, last = np.searchsorted(sent, [start, start + length])
            refused = int(np.sum((self.outcome.refused >= start) & (self.outcome.refused < start + length)))
            p95 = float(np.percentile(latency[first:last], 95)) * 1000 if last > first else 0.0
            yield start, int(last - first) + refused, refused, p95

    def breaches(self, objective: Objective, length: float = WINDOW_S) -> list[tuple[float, float, list[str]]]:
        """(start, end, reasons) of the windows that miss the objective; adjacent windows are merged."""
        found: list[tuple[float, float, list[str]]] = []
        for start, requests, refused, p95 in self.windows(length):
            if why := objective.breaches(requests, refused, p95):
                if found and found[-1][1] == start:
                    began, _, before = found.pop()
                    found.append((began, start + length, before + why))
                else:
                    found.append((start, start + length, why))
        return found


@dataclass(eq=False)
class Cluster:
    """The replicas and nodes of a plan during a trace."""

    station: Station
    autoscaler: Autoscaler
    delays: Delays
    per_node: int
    fewest_nodes: int
    rng: np.random.Generator
    moments: list[Moment] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    gone: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.replicas = Replicas(self.station, 0, 0.0, self.rng)
        self._names: dict[Replica, str] = {}
        self._on: dict[Replica, Node] = {}
        self._starting: list[tuple[Replica, Node]] = []
        self._serial = itertools.count()
        self._seen: dict[Replica, tuple[int, float]] = {}
        self._came: deque[tuple[float, int]] = deque(maxlen=int(self.autoscaler.config.look_back_period_s / CONTROL_S))
        for _ in range(self.fewest_nodes):
            self.nodes.append(Node(ready=0.0))
        for _ in range(self.autoscaler.target):
            self._up(*self._place())

    def run(self, arrivals: Array, length: float) -> Replayed:
        """Simulates all arrivals of a trace of `length` seconds."""
        every = {self._control: CONTROL_S, self._push: self.autoscaler.config.metrics_interval_s}
        every[self._record] = self.autoscaler.record_every_s
        for do, seconds in every.items():
            self._repeat(do, seconds)
        outcome = self.replicas.run(arrivals.tolist())
        ended = max(length, self.replicas.now)
        hours = sum(min(node.ended, ended) - node.began for node in (*self.nodes, *self.gone)) / 3600
        return Replayed(outcome, self.moments, hours, length)

    def _repeat(self, do: Any, seconds: float) -> None:  # noqa: ANN401 - one of the methods below
        do()
        self.replicas.at(self.replicas.now + seconds, self._repeat, do, seconds)

    def _record(self) -> None:
        """Records the mean wait since the last record, as serve_app.graph.autoscaling.QueueingTimer reports it."""
        for replica in self.replicas.running:
            done, waited = self._seen.get(replica, (0, 0.0))
            images = replica.done - done
            mean = (replica.waited_s - waited) / max(images, 1)
            self._seen[replica] = (replica.done, replica.waited_s)
            self.autoscaler.record(self._names[replica], self.replicas.now, replica.ongoing, mean)

    def _push(self) -> None:
        self.autoscaler.push([self._names[replica] for replica in self.replicas.running], self.replicas.now)

    def _control(self) -> None:
        now, running = self.replicas.now, self.replicas.running
        self._came.append((now, self.replicas.came))
        seconds, came = np.subtract(self._came[-1], self._came[0])
        self.replicas.load = min(came / max(seconds, CONTROL_S) / max(len(running), 1), self.station.most)
        wanted = self.autoscaler.decide([self._names[replica] for replica in running], now)
        while len(running) + len(self._starting) < wanted:
            self._start()
        while self._starting and len(running) + len(self._starting) > wanted:
            self._leave(self._starting.pop()[1])
        while len(running) > wanted:
            self._stop(min(running, key=lambda one: one.ongoing))
        for node in [one for one in self.nodes if now - one.empty_since >= self.delays.idle_s]:
            if len(self.nodes) > self.fewest_nodes:
                node.ended = now
                self.nodes.remove(node)
                self.gone.append(node)
        self.replicas.fronts = max(sum(node.ready <= now for node in self.nodes), 1)
        self.moments.append(Moment(now, wanted, len(running), len(self.nodes)))

    def _place(self) -> tuple[Replica, Node]:
        """Takes a place on the node with room that is ready first, else on a new node."""
        now = self.replicas.now
        room = [node for node in self.nodes if node.used < self.per_node]
        if not room:
            new = Node(ready=now + self.delays.ask_s + self.delays.node_s + self.delays.image_s, began=now)
            self.nodes.append(new)
            room = [new]
        node = min(room, key=lambda one: one.ready)
        node.used += 1
        node.empty_since = math.inf
        return Replica(), node

    def _start(self) -> None:
        placed = self._place()
        self._starting.append(placed)
        moment = max(self.replicas.now, placed[1].ready) + self.delays.replica_s
        self.replicas.at(moment, self._started, placed)

    def _started(self, placed: tuple[Replica, Node]) -> None:
        if placed in self._starting:  # else the autoscaler no longer wants it
            self._starting.remove(placed)
            self._up(*placed)

    def _up(self, replica: Replica, node: Node) -> None:
        self._names[replica], self._on[replica] = f"r{next(self._serial)}", node
        self.replicas.running.append(replica)

    def _stop(self, replica: Replica) -> None:
        self.replicas.running.remove(replica)
        self._leave(self._on.pop(replica))

    def _leave(self, node: Node) -> None:
        node.used -= 1
        if not node.used:
            node.empty_since = self.replicas.now
