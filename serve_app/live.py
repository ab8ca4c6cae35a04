"""What one Detector replica serves, what it served before, and what it refused. Changes one at a time, never half.

swap:  address ──loader──► warm, tested ──► the next batch runs on it        the old ones stay, to go back at once
                   └─ refused: reason kept, logged, counted; what serves goes on
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import numpy as np

from serve_app import holder, loader, metrics
from serve_app.errors import WeightsError
from serve_app.loader import Loaded
from serve_app.records import Refusal, Serving
from serve_app.settings import AppSettings

logger = logging.getLogger("ray.serve")
REFUSALS = 5  # the last ones are shown


class LiveWeights:
    """Starts empty; `now` is there after the first `turn_to`, when `started` is true."""

    now: Loaded

    def __init__(self, settings: AppSettings, default: str, size: int, device: str) -> None:
        self._settings, self._default, self._size, self._device = settings, default, size, device
        self._before: Loaded | None = None
        self._loading: str | None = None
        self._refused: deque[Refusal] = deque(maxlen=REFUSALS)
        self._asked: str | None = None  # for what is live, as it was asked for
        self._swaps, self._gauge, self._seconds = (
            metrics.swaps_total(),
            metrics.weights_live(),
            metrics.load_seconds_total(),
        )

    def turn_to(self, uri: str | None, batch_sizes: Iterable[int]) -> None:
        """Serves `uri`, or the default when None, once it is loaded, warm for the batch sizes, and tested.

        At start raises WeightsError when nothing can be served. Later a failure changes nothing but the report; only
        a batch size that the live network cannot run raises RuntimeError.
        """
        wanted, sizes = uri or self._default, set(batch_sizes)
        if self._asked is None:
            self._start(wanted, sizes)
            return
        self.now.warm(sizes, self._size)
        if wanted not in (self._asked, self.now.pinned.uri):
            try:
                self._take(wanted, sizes)
            except Exception as error:  # noqa: BLE001 - whatever it is, what serves goes on
                self._refuse(wanted, error)

    def _start(self, wanted: str, sizes: set[int]) -> None:
        failures = []
        for uri in self._candidates(wanted):
            try:
                self._take(uri, sizes)
            except WeightsError as error:
                self._refuse(uri, error)
                failures.append(error)
            else:
                return
        raise failures[0]

    def _candidates(self, wanted: str) -> Iterator[str]:
        """A new replica may find that the others have refused what it is told to serve: then it serves what they do."""
        yield wanted
        if wanted != self._default:
            if (taken := holder.accepted()) and taken != wanted:
                yield taken
            yield self._default

    def _take(self, uri: str, sizes: set[int]) -> None:
        old = self.now if self._asked else None
        self._loading = uri
        try:
            outcome = "live"
            if self._before and uri == self._before.pinned.uri:
                new, outcome = self._before, "back"
                new.warm(sizes, self._size)
            else:
                new = loader.load(
                    uri,
                    self._get,
                    settings=self._settings,
                    size=self._size,
                    device=self._device,
                    batch_sizes=sizes,
                    old=old,
                )
                for step, took in new.seconds.items():
                    self._seconds.inc(max(took, 1e-6), {"step": step})  # Ray refuses an increment of nothing
        finally:
            self._loading = None
        self.now, self._before, self._asked = new, old, uri  # a batch that has begun keeps the network it began with
        holder.accept(new.pinned.uri)
        self._swaps.inc(tags={"outcome": outcome})
        self.show()
        logger.info("weights live: %s", new.pinned.uri)

    def show(self) -> None:
        """In the metrics, until the next report."""
        w = self.now.weights
        self._gauge.set(1, {"name": w.name, "version": w.version or "", "sha256": w.sha256})

    def _get(self, uri: str) -> loader.Content:
        return holder.fetch(uri, self._settings)

    def _refuse(self, uri: str, error: Exception) -> None:
        reason = getattr(error, "reason", "failed")
        self._refused.append(Refusal(uri, reason, str(error), datetime.now(UTC).isoformat(timespec="seconds")))
        self._swaps.inc(tags={"outcome": reason})
        logger.error("weights refused (%s): %s", reason, error)

    def probe(self) -> None:
        """One forward pass of nothing."""
        self.now.model(np.zeros((1, self._size, self._size, 3), np.uint8))

    @property
    def started(self) -> bool:
        """Whether anything is live."""
        return self._asked is not None

    def report(self) -> Serving:
        """What is live here, and all else there is to know."""
        previous = self._before.weights if self._before else None
        return Serving(
            self.now.weights,
            self._device,
            self._size,
            self.now.pinned.uri,
            previous,
            self._loading,
            tuple(self._refused),
        )
