"""Live settings: the `user_config` of one Detector replica, and its weights, change while batches go on.

Serve sends a replica nothing while it reconfigures, and a slow store takes minutes. So changes run in the background.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from serve_app import metrics
from serve_app.errors import UnreachableStore
from serve_app.graph.live_weights import LiveWeights
from serve_app.settings import DetectorSettings

logger = logging.getLogger("ray.serve")
AGAIN_S = 30.0  # until weights that the store did not give are asked for again


class LiveSettings:
    """The settings of one replica. For one event loop only.

    `adopt` applies settings, in a thread. It returns the reason if their weights are refused, and may raise.
    """

    def __init__(self, adopt: Callable[[DetectorSettings], str | None], weights: LiveWeights) -> None:
        self._adopt, self._weights = adopt, weights
        self._refused = metrics.settings_refused_total()
        self._newest: DetectorSettings | None = None
        self._one_at_a_time = asyncio.Lock()
        self._changes: set[asyncio.Task[None]] = set()

    async def change(self, user_config: dict[str, Any]) -> None:
        """Loads the weights at start; later starts the change, and returns.

        Invalid settings are rejected, and the previous ones stay active. Raises WeightsError or RuntimeError only at
        start, when there is nothing to serve: raised later, they would kill the replica.
        """
        started, reason = self._weights.started, None
        try:
            wanted = DetectorSettings.model_validate(user_config)
            if not started:
                reason = await asyncio.to_thread(self._adopt, wanted)
        except (ValidationError, RuntimeError) as error:  # RuntimeError: for example, out of memory
            self._refuse(error)
            if not started:
                await asyncio.to_thread(self._adopt, DetectorSettings())
            return
        if started or reason == UnreachableStore.reason:
            self._weights.announce(wanted.weights)
            self._newest, change = wanted, asyncio.create_task(self._change(wanted))
            self._changes.add(change)  # the event loop keeps only a weak reference
            change.add_done_callback(self._changes.discard)

    async def _change(self, wanted: DetectorSettings) -> None:
        """Applies the settings after those before them, and again as long as the store is unreachable.

        Ends when newer ones have come.
        """
        while wanted is self._newest:
            async with self._one_at_a_time:
                reason = await self._adopted(wanted) if wanted is self._newest else None
            if wanted is self._newest:
                self._weights.settled()
            if reason != UnreachableStore.reason:
                return
            await asyncio.sleep(AGAIN_S)

    async def _adopted(self, wanted: DetectorSettings) -> str | None:
        try:
            return await asyncio.to_thread(self._adopt, wanted)
        except Exception as error:  # noqa: BLE001 - no failure may stop what serves
            self._refuse(error)
            return None

    def _refuse(self, error: Exception) -> None:
        self._refused.inc()
        logger.error("user_config refused, the previous one stays active: %s", error)
