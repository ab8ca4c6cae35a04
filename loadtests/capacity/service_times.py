"""Derives the service times F and S of a replica (station.py) from the order of its answers."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from loadtests.clients import Asked

BEHIND = 0.3  # share of F: a batch that was ready so long before the end of the one before it has waited for that


class ServiceTimes(NamedTuple):
    """Service times of batches in ms, by batch size.

    alone: the batch started on an idle engine and was the only one in service.
    joined: it started on an idle engine, and another batch was formed before its end: (delay of the other, own time).
    behind: it was in service when the batch before it ended, and more photos were ready for the lane that became free.
    Both lanes are then busy all the time, as at a utilisation of 1.
    ranks: those of alone and behind in the order of measurement, 0 the fastest and 1 the slowest of a kind and size.
    The order matters because a machine is slow for a while, not for one batch.
    """

    alone: dict[int, list[float]]
    joined: dict[int, list[tuple[float, float]]]
    behind: dict[int, list[float]]
    ranks: list[float]

    @classmethod
    def of(cls, good: list[Asked]) -> ServiceTimes:
        """Derives the times of all replicas from their answers, in the order in which they arrived."""
        found = cls(defaultdict(list), defaultdict(list), defaultdict(list), [])
        typical = float(np.median([one.stages_ms["detect"] for one in good]))
        for replica in {one.replica for one in good}:
            found.add([one for one in good if one.replica == replica], typical)
        return found

    def add(self, answers: list[Asked], typical: float) -> None:
        """Adds the answers of one replica; `typical` is the median time in the detect stage, in ms."""
        all_ready = np.sort([ready(one) for one in answers])
        # All photos of a batch have the same detect time. A batch ends with its last answer.
        batches = [list(batch) for _, batch in itertools.groupby(answers, key=lambda one: one.stages_ms["detect"])]
        end, through, order = -np.inf, 0, list[tuple[list[float], float]]()
        for members, following in itertools.zip_longest(batches, batches[1:]):
            size, done, began = members[0].batch, members[-1].done * 1000, formed(members)
            start, next_began = min(map(ready, members)), formed(following) if following else np.inf
            through += len(members)
            if start >= end and next_began >= done:
                self.alone[size].append(done - began)
                order.append((self.alone[size], done - began))
            elif start >= end and next_began >= began:
                self.joined[size].append((round(next_began - began, 1), round(done - began, 1)))
            elif start <= end - BEHIND * typical and np.searchsorted(all_ready, end) > through:
                self.behind[size].append(done - end)
                order.append((self.behind[size], done - end))
            end = max(end, done)
        self.ranks.extend((sum(one < took for one in kind) + 0.5) / len(kind) for kind, took in order)


def ready(one: Asked) -> float:
    """When the photo could join a batch, in ms."""
    return one.sent * 1000 + one.stages_ms["preprocess"]


def formed(members: list[Asked]) -> float:
    """When the batch was formed, in ms."""
    return ready(members[-1]) + members[-1].stages_ms["queue"]
