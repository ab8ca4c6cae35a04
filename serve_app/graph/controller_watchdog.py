"""The controller watchdog: each replica notices when Serve's controller is frozen, and has Ray start another.

Requests do without the controller, so nobody else notices, but no replica is replaced, scaled or upgraded any more. Ray
restarts a controller that has died, not one that is stopped or hangs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import cache

import ray
from ray.exceptions import GetTimeoutError

logger = logging.getLogger("ray.serve")
NAMESPACE, NAME = "serve", "SERVE_CONTROLLER_ACTOR"
SILENT_S = 30.0  # without one of its health checks, which come every 5 s
ANSWER_S = 10.0


class ControllerWatchdog:
    """When this replica last heard of the controller. For one event loop only."""

    def __init__(self) -> None:
        self.heard = time.monotonic()

    async def watch(self) -> None:
        """Looks for the controller whenever it has been silent for SILENT_S (30 s)."""
        while True:
            await asyncio.sleep(SILENT_S / 3)
            if time.monotonic() - self.heard > SILENT_S:
                try:
                    await asyncio.to_thread(replace_frozen)
                except Exception:
                    logger.exception("Serve's controller is silent")
                self.heard = time.monotonic()


@cache
def watchdog() -> tuple[ControllerWatchdog, asyncio.Task[None]]:
    """That of this process, which watches from the first call on."""
    made = ControllerWatchdog()
    return made, asyncio.create_task(made.watch())


def heard() -> None:
    """Notes a sign of life of the controller."""
    watchdog()[0].heard = time.monotonic()


def replace_frozen() -> None:
    """Kills the controller if it does not answer within ANSWER_S (10 s). Ray then starts another.

    Raises ValueError or RayActorError if it has died.
    """
    controller = ray.get_actor(NAME, namespace=NAMESPACE)  # ValueError: there is none
    try:
        # Without retries, the call fails at once while Ray starts another.
        ray.get(controller.check_alive.options(max_task_retries=0).remote(), timeout=ANSWER_S)
    except GetTimeoutError:
        logger.error("Serve's controller has been silent for %g s and is replaced", SILENT_S + ANSWER_S)
        ray.kill(controller, no_restart=False)
