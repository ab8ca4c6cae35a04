"""Live weights: what one Detector replica serves, what it served before, and what it refused. Swaps are atomic.

swap:  address ──loader──► warm, tested ──► live from the next batch on; the previous weights stay loaded, to go back
                   └─ refused: the reason is kept, logged and counted; the live weights stay
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import numpy as np

from serve_app import metrics
from serve_app.errors import UnreachableStore, WeightsError
from serve_app.graph import weights_holder
from serve_app.graph.payloads import Refusal, Serving
from serve_app.settings import AppSettings
from serve_app.weights import loader
from serve_app.weights.loader import Loaded

logger = logging.getLogger("ray.serve")
REFUSALS = 5  # the last refused weights that `/v1/models` shows


class LiveWeights:
    """Starts empty: `current` exists after the first `switch_to`, when `started` is true."""

    current: Loaded

    def __init__(self, settings: AppSettings, default: str, size: int, task: str, device: str) -> None:
        self._settings, self._default = settings, default
        self._size, self._task, self._device = size, task, device
        self._previous: Loaded | None = None
        self._loading: str | None = None
        self._announced: str | None = None
        self._refused: deque[Refusal] = deque(maxlen=REFUSALS)
        self._requested: str | None = None  # the address of the live weights, as it was configured
        self._swaps, self._gauge, self._seconds = (
            metrics.swaps_total(),
            metrics.weights_live(),
            metrics.load_seconds_total(),
        )

    def switch_to(self, uri: str | None, batch_sizes: Iterable[int]) -> str | None:
        """Serves `uri`, or the default if None, once it is loaded, tested, and warm for the batch sizes.

        Returns the reason if they are refused. Raises WeightsError at start, when nothing can be served. Later, refused
        weights change only the report; RuntimeError is raised only for a batch size that the live network cannot run.
        """
        wanted, sizes = uri or self._default, set(batch_sizes)
        if self._requested is None:
            return self._start(wanted, sizes)
        self.current.warm(sizes, self._size)
        if not self._serves(wanted):
            try:
                self._go_live(wanted, sizes)
            except Exception as error:  # noqa: BLE001 - no failure may stop the live weights
                return self._refuse(wanted, error)
        return None

    def announce(self, uri: str | None) -> None:
        """Reports these weights, or the default if None, as loading from now on, until they are live or `settled`."""
        self._announced = uri or self._default

    def settled(self) -> None:
        """Ends the report of what was announced: it is live or refused."""
        self._announced = None

    def _serves(self, uri: str) -> bool:
        return uri in (self._requested, self.current.pinned.uri)

    def _start(self, wanted: str, sizes: set[int]) -> str | None:
        failures, reasons = [], []
        for uri in self._candidates(wanted):
            try:
                self._go_live(uri, sizes)
            except WeightsError as error:
                reasons.append(self._refuse(uri, error))
                failures.append(error)
            else:
                return reasons[0] if reasons else None
        raise failures[0]

    def _candidates(self, wanted: str) -> Iterator[str]:
        """What to try, in order. If the others refused the configured weights, a new replica serves what they serve."""
        yield wanted
        if wanted != self._default:
            if (accepted := weights_holder.last_live()) and accepted != wanted:
                yield accepted
            yield self._default

    def _go_live(self, uri: str, sizes: set[int]) -> None:
        """Loads and tests the weights, then makes them current. Raises WeightsError."""
        old = self.current if self._requested else None
        self._loading = uri
        try:
            outcome = "live"
            if self._previous and uri == self._previous.pinned.uri:
                new, outcome = self._previous, "back"
                new.warm(sizes, self._size)
            else:
                new = loader.load(
                    uri,
                    self._fetch,
                    settings=self._settings,
                    size=self._size,
                    task=self._task,
                    device=self._device,
                    batch_sizes=sizes,
                    old=old,
                )
                for step, took in new.seconds.items():
                    self._seconds.inc(max(took, 1e-6), {"step": step})  # Ray refuses an increment of 0
        finally:
            self._loading = None
        # A batch that has started keeps its engine.
        self.current, self._previous, self._requested = new, old, uri
        weights_holder.record_live(new.pinned.uri)
        self._swaps.inc(tags={"outcome": outcome})
        self.set_gauge()
        logger.info("weights live: %s", new.pinned.uri)

    def set_gauge(self) -> None:
        """Sets the gauge of the live weights. Ray drops a gauge that is not set again within 10 s."""
        w, refused = self.current.weights, self.current.int8_refused
        tags = {"name": w.name, "version": w.version or "", "sha256": w.sha256, "precision": w.precision}
        self._gauge.set(1, tags | {"int8_refused": refused.reason if refused else ""})

    def _fetch(self, uri: str) -> loader.Content:
        return weights_holder.fetch(uri, self._settings)

    def _refuse(self, uri: str, error: Exception) -> str:
        """Keeps the reason, logs and counts it, and returns it."""
        reason = error.reason if isinstance(error, WeightsError) else "failed"
        again = self._refused and (self._refused[-1].uri, self._refused[-1].reason) == (uri, reason)
        if again and reason == UnreachableStore.reason:  # they are asked for every 30 s
            self._refused.pop()
        self._refused.append(Refusal(uri, reason, str(error), datetime.now(UTC).isoformat(timespec="seconds")))
        self._swaps.inc(tags={"outcome": reason})
        logger.error("weights refused (%s): %s", reason, error)
        return reason

    def run_once(self) -> None:
        """Runs one forward pass on a black image."""
        self.current.engine(np.zeros((1, self._size, self._size, 3), np.uint8))

    @property
    def started(self) -> bool:
        """Whether any weights are live."""
        return self._requested is not None

    def report(self) -> Serving:
        """The live, previous, loading and refused weights of this replica."""
        previous = self._previous.weights if self._previous else None
        announced = self._announced if self._announced and not self._serves(self._announced) else None
        return Serving(
            self.current.weights,
            self._device,
            self._size,
            self.current.int8_refused.detail if self.current.int8_refused else None,
            self.current.pinned.uri,
            previous,
            self._loading or announced,
            tuple(self._refused),
        )
