"""Until when a client waits. The moment goes with its images to every stage, so that none works for nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve_app.errors import InvalidParameter, Timeout

HEADER = "X-Request-Deadline-Ms"


def budget_s(given: str | None, longest_s: float) -> float:
    """Seconds from now: `longest_s`, or fewer when the HEADER says so. Raises InvalidParameter."""
    if given is None:
        return longest_s
    if not (given.isascii() and given.isdigit() and len(given) <= 9 and int(given)):
        raise InvalidParameter(f"`{HEADER}`: not a whole number of milliseconds from 1")
    return min(int(given) / 1000, longest_s)


@asynccontextmanager
async def until(given: str | None, longest_s: float) -> AsyncIterator[float]:
    """Yields that moment, in seconds since 1970 as other nodes know it too. Raises Timeout once it has passed."""
    budget = budget_s(given, longest_s)
    try:
        async with asyncio.timeout(budget):
            yield time.time() + budget
    except TimeoutError as error:
        raise Timeout(f"no answer within {budget:g} s") from error


def check(moment: float) -> None:
    """Raises Timeout once it has passed."""
    if time.time() >= moment:
        raise Timeout("its time was over before its turn came")
