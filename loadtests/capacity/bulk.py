"""A plan for a batch job: how many nodes make so many photos in so many hours, and what that costs.

A batch has no queue to model: nodes work at their own rate, as measured by a run (`_summary.json`), and share nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serve_app.batch.price import Instance


@dataclass(frozen=True)
class BulkPlan:
    """Nodes for a number of photos. `rate` is that of one node, in photos/s, from a run of `measured` photos."""

    photos: int
    hours: float
    rate: float
    measured: int
    instance: Instance | None = None

    @property
    def nodes(self) -> int:
        """The fewest nodes that are done in time."""
        return math.ceil(self.photos / (self.rate * self.hours * 3600))

    @property
    def takes(self) -> float:
        """The hours that they take."""
        return self.photos / (self.rate * self.nodes * 3600)

    def rows(self) -> Iterator[tuple[str, str]]:
        """What to print."""
        yield "rate of one node", f"{self.rate:.1f} photos/s, from a run of {self.measured:,} photos"
        yield "nodes", f"{self.nodes}"
        yield "time", f"{self.takes:.1f} hours for {self.photos:,} photos"
        if self.instance:
            cost, million = self.nodes * self.takes * self.instance.hourly, self.instance.per_million(1, self.rate)
            yield "cost", f"{cost:,.2f} with {self.instance.name}, {million:,.2f} a million photos"


def read(summary: Path, photos: int, hours: float, instance: Instance | None) -> BulkPlan:
    """A plan from the summary of a run. Raises OSError, or ValueError if no photo was made when it was written."""
    last = json.loads(summary.read_text()).get("last")
    if not last:
        raise ValueError(f"{summary} has no rate, because nothing was left to do in the last run: run a new one")
    return BulkPlan(photos, hours, last["images_per_s"] / last["nodes"], last["images"], instance)
