"""SIGINT and SIGTERM end a command as Ctrl-C does."""

from __future__ import annotations

import signal
from types import FrameType


def stop_on_signals() -> None:
    """Makes SIGINT and SIGTERM raise KeyboardInterrupt.

    SIGINT needs a handler because a shell's `&` makes the process ignore it. Service managers send SIGTERM.
    """
    for sent in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sent, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
