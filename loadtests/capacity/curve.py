"""The measured curve of one replica, as a record and as a queue. sweep.py measures it."""

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
from serve_app.graph.detector import CONCURRENT_BATCHES
from serve_app.settings import MAX_PREDICTIONS

Some = TypeVar("Some")
QUIET = 0.05  # largest share of the machine that other processes may use during a step


class Step(BaseModel):
    """The measurements at one arrival rate. Times are in milliseconds; dictionaries have the batch size as key."""

    model_config = ConfigDict(frozen=True)

    offered: float  # arrival rate, requests a second
    others: float = 0.0  # share of the machine that neither the service nor its clients used
    answered: float  # requests a second
    seconds: float
    sent: int
    refused: int
    failed: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    ready_ms: list[float]  # until a photo can join a batch; the other times: service_times.py
    alone_ms: dict[int, list[float]]
    joined_ms: dict[int, list[tuple[float, float]]]
    behind_ms: dict[int, list[float]]
    ranks: list[float]


class Curve(BaseModel):
    """Steps of rising arrival rate, and everything that they depend on."""

    model_config = ConfigDict(frozen=True)

    measured: str
    hardware: dict[str, str | int | float]
    engine: dict[str, str]
    versions: dict[str, str]
    mix: dict[str, int]
    max_batch_size: int
    batch_wait_timeout_s: float
    replicas: int  # measured together on this hardware
    steps: list[Step]

    @property
    def knee(self) -> Step:
        """The last step at which the service kept up."""
        return [step for step in self.steps if follows(step)][-1]

    def below(self, rate: float) -> Curve:
        """The curve without the steps above an arrival rate."""
        return self.model_copy(update={"steps": [step for step in self.steps if step.offered <= rate]})

    def station(self, rng: np.random.Generator | None = None) -> Station:
        """One replica as a queue. With `rng` its steps and measurements are resampled (bootstrap)."""
        ready, alone, joined, behind, ranks = [], [], [], [], []
        quiet = [step for step in self.steps if step.others <= QUIET]
        steps = quiet if len({step.offered for step in quiet}) > 1 else self.steps
        # Steps are resampled too: a machine varies more from one minute to the next than within one.
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
        behind = behind or alone  # no batch ever waited
        station = Station(
            fit(ready), fit(alone), fit(behind),
            self.max_batch_size, self.batch_wait_timeout_s, CONCURRENT_BATCHES, MAX_PREDICTIONS, shared, ranks,
        )  # fmt: skip
        if math.isinf(most := most_of(steps) / self.replicas):
            return station
        slowed = 0.0
        for _ in range(20):  # fixed point: the measured times include the slowdown; each pass halves the error
            one = fit(behind, slowed).mean(self.max_batch_size, 0.0) / self.max_batch_size
            slowed = max(0.0, (1 / (most * one) - 1) / most)
        return replace(station, alone=fit(alone, slowed), behind=fit(behind, slowed))


def most_of(steps: Sequence[Step]) -> float:
    """Photos/s answered at the largest arrival rate, if the service never kept up with it; else infinite."""
    top = [step for step in steps if step.offered == max(one.offered for one in steps)]
    return math.inf if any(follows(step) for step in top) else float(np.median([step.answered for step in top]))


def again(values: Sequence[Some], rng: np.random.Generator | None) -> list[Some]:
    """The values; with `rng`, a sample with replacement."""
    return list(values) if rng is None else [values[n] for n in rng.integers(len(values), size=len(values))]


def observed(by_batch: dict[int, list[float]], load: float, rng: np.random.Generator | None) -> Iterator[Observed]:
    """The rows for `fit`, from milliseconds by batch size."""
    for batch, values in by_batch.items():
        yield from (Observed(batch, load, ms / 1000) for ms in again(values, rng))


def follows(step: Step) -> bool:
    """Whether the service kept up: none refused or failed, and at most 10 % (or 5) not answered at the end."""
    late = step.sent - step.answered * step.seconds
    return late <= max(0.1 * step.sent, 5) and not step.refused and not step.failed


def read(path: Path) -> Curve:
    """Reads a curve. Raises OSError, ValidationError."""
    return Curve.model_validate_json(path.read_text())


def write(curve: Curve, path: Path) -> None:
    """Writes a curve with one line for each step, which makes two curves comparable. Raises OSError."""
    record = curve.model_dump(mode="json")
    steps = ",\n".join(f"    {json.dumps(step)}" for step in record.pop("steps"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2)[:-2] + f',\n  "steps": [\n{steps}\n  ]\n}}\n')
