"""The measured curve of one replica: the record, and the queue that it makes. How it is measured: sweep.py."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from loadtests.capacity.station import Joined, Observed, Station, fit, sharing
from serve_app.deployments import CONCURRENT_BATCHES
from serve_app.settings import MAX_PREDICTIONS

Some = TypeVar("Some")
QUIET = 0.05  # part of the machine that others may have


class Step(BaseModel):
    """What came of one load. Times in milliseconds, by size of batch."""

    model_config = ConfigDict(frozen=True)

    offered: float  # requests a second
    others: float = 0.0  # part of the machine that had other work than the service and its clients
    answered: float
    seconds: float
    sent: int
    refused: int
    failed: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    ready_ms: list[float]
    alone_ms: dict[int, list[float]]
    joined_ms: dict[int, list[tuple[float, float]]]
    behind_ms: dict[int, list[float]]
    ranks: list[float]


class Curve(BaseModel):
    """Steps of rising load, and all that they depend on."""

    model_config = ConfigDict(frozen=True)

    measured: str
    hardware: dict[str, str | int | float]
    engine: dict[str, str]
    versions: dict[str, str]
    mix: dict[str, int]
    max_batch_size: int
    batch_wait_timeout_s: float
    replicas: int  # on this hardware, measured together
    steps: list[Step]

    @property
    def knee(self) -> Step:
        """The last step that was followed."""
        return [step for step in self.steps if follows(step)][-1]

    def below(self, rate: float) -> Curve:
        """Without the steps above a rate."""
        return self.model_copy(update={"steps": [step for step in self.steps if step.offered <= rate]})

    def station(self, rng: np.random.Generator | None = None) -> Station:
        """One replica as a queue; with a generator, of steps and measurements drawn again (bootstrap)."""
        ready, alone, joined, behind, ranks = [], [], [], [], []
        quiet = [step for step in self.steps if step.others <= QUIET]
        steps = quiet if len({step.offered for step in quiet}) > 1 else self.steps
        # Steps are drawn too: a machine differs more from one minute to the next than within one.
        for step in again(steps, rng):
            load = step.answered / self.replicas
            ranks.append(step.ranks)
            ready += [Observed(1, load, ms / 1000) for ms in again(step.ready_ms, rng)]
            alone += list(observed(step.alone_ms, load, rng))
            behind += list(observed(step.behind_ms, load, rng))
            joined += [
                Joined(size, load, after / 1000, ms / 1000)
                for size, values in step.joined_ms.items()
                for after, ms in again(values, rng)
            ]
        shared = sharing(fit(alone), joined)
        alone += [Observed(one.batch, one.load, one.without(shared)) for one in joined]
        behind = behind or alone  # none ever waited
        station = Station(
            fit(ready), fit(alone), fit(behind),
            self.max_batch_size, self.batch_wait_timeout_s, CONCURRENT_BATCHES, MAX_PREDICTIONS, shared, ranks,
        )  # fmt: skip
        if math.isinf(most := most_of(steps) / self.replicas):
            return station
        slowed = 0.0
        for _ in range(20):  # what was measured is slowed already; it settles, each time half as far from the end
            one = fit(behind, slowed).mean(self.max_batch_size, 0.0) / self.max_batch_size
            slowed = max(0.0, (1 / (most * one) - 1) / most)
        return replace(station, alone=fit(alone, slowed), behind=fit(behind, slowed))


def most_of(steps: Sequence[Step]) -> float:
    """Photos a second that were answered when the largest load was too much each time; infinite when it was not."""
    top = [step for step in steps if step.offered == max(one.offered for one in steps)]
    return math.inf if any(follows(step) for step in top) else float(np.median([step.answered for step in top]))


def again(values: Sequence[Some], rng: np.random.Generator | None) -> list[Some]:
    """As they are, or drawn from them with replacement."""
    return list(values) if rng is None else [values[n] for n in rng.integers(len(values), size=len(values))]


def observed(by_batch: dict[int, list[float]], load: float, rng: np.random.Generator | None) -> Iterator[Observed]:
    """Rows for `fit`."""
    for batch, values in by_batch.items():
        yield from (Observed(batch, load, ms / 1000) for ms in again(values, rng))


def follows(step: Step) -> bool:
    """Whether as much was answered as was sent, less what is under way at any moment."""
    late = step.sent - step.answered * step.seconds
    return late <= max(0.1 * step.sent, 5) and not step.refused and not step.failed


def read(path: Path) -> Curve:
    """Raises OSError, ValidationError."""
    return Curve.model_validate_json(path.read_text())


def write(curve: Curve, path: Path) -> None:
    """A line for each step, so that two curves can be compared."""
    record = curve.model_dump(mode="json")
    steps = ",\n".join(f"    {json.dumps(step)}" for step in record.pop("steps"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2)[:-2] + f',\n  "steps": [\n{steps}\n  ]\n}}\n')
