"""The deadline of a request, in seconds since 1970.

It travels with each image to every stage, so that no stage works for a client that no longer waits. Knows nothing of
HTTP except the name and value of one header.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve_app.errors import InvalidParameter, Timeout

HEADER = "X-Request-Deadline-Ms"


def budget_s(given: str | None, longest_s: float) -> float:
    """The time for a request in seconds: the header's value, but at most `longest_s`. Raises InvalidParameter."""
    if given is None:
        return longest_s
    if not (given.isascii() and given.isdigit() and len(given) <= 9 and int(given)):
        raise InvalidParameter(f"`{HEADER}`: must be a whole number of milliseconds, 1 to 999999999")
    return min(int(given) / 1000, longest_s)


@asynccontextmanager
async def until(given: str | None, longest_s: float) -> AsyncIterator[float]:
    """Yields the deadline in seconds since 1970, which all nodes share. Raises Timeout when it passes in the block."""
    budget = budget_s(given, longest_s)
    try:
        async with asyncio.timeout(budget):
            yield time.time() + budget
    except TimeoutError as error:
        raise Timeout(f"there was no answer within {budget:g} s: send fewer images or try again later") from error


def check(expires_at: float) -> None:
    """Raises Timeout if the deadline, in seconds since 1970, has passed."""
    if time.time() >= expires_at:
        raise Timeout("the deadline passed before the image was processed: try again later")
