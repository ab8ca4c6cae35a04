"""What the order of the answers tells of a replica's F and S (station.py)."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from loadtests.clients import Asked

BEHIND = 0.3  # of F: a batch ready so long before the one before it ended has waited for it


class Services(NamedTuple):
    """Times of batches in ms, by their size.

    Alone is a batch that found the engine idle and had it for itself; joined one that found it idle, until another was
    formed: how long after it, and its time. Behind is one that was in work when the batch before it ended, with more
    photos ready for the lane that got free: both lanes are in use all the time, as they are when there is always work.
    Ranks are of these two in their order, 0 the quickest and 1 the slowest of a kind and size: a machine is slow for a
    while, not for a batch.
    """

    alone: dict[int, list[float]]
    joined: dict[int, list[tuple[float, float]]]
    behind: dict[int, list[float]]
    ranks: list[float]

    @classmethod
    def of(cls, good: list[Asked]) -> Services:
        """Of all replicas; the answers in the order in which they came."""
        found = cls(defaultdict(list), defaultdict(list), defaultdict(list), [])
        typical = float(np.median([one.stages_ms["detect"] for one in good]))
        for replica in {one.replica for one in good}:
            found.add([one for one in good if one.replica == replica], typical)
        return found

    def add(self, answers: list[Asked], typical: float) -> None:
        """Those of one replica."""
        all_ready = np.sort([ready(one) for one in answers])
        # The stages of one batch have the same times; it ends with its last answer.
        batches = [list(batch) for _, batch in itertools.groupby(answers, key=lambda one: one.stages_ms["detect"])]
        end, through, order = -np.inf, 0, list[tuple[list[float], float]]()
        for members, after in itertools.zip_longest(batches, batches[1:]):
            size, done, began = members[0].batch, members[-1].done * 1000, formed(members)
            start, next_began = min(map(ready, members)), formed(after) if after else np.inf
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
    """When it could join a batch, in ms."""
    return one.sent * 1000 + one.stages_ms["preprocess"]


def formed(members: list[Asked]) -> float:
    """When the batch was, in ms."""
    return ready(members[-1]) + members[-1].stages_ms["queue"]
