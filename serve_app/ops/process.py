"""Another process of this machine, which may end at any time. For Linux only."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path


class Process:
    """A process that may end at any time; `fd` stays its own, even when another process gets its PID."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError if it has ended."""
        self.pid, self.fd = pid, os.pidfd_open(pid)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)

    def arguments(self) -> list[str]:
        """Its command line. Raises FileNotFoundError if it has ended."""
        return Path(f"/proc/{self.pid}/cmdline").read_text().split("\0")

    def parent(self) -> int:
        """The PID of its parent. Raises FileNotFoundError if it has ended."""
        return int(Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[1])

    def ended(self) -> bool:
        """Whether it has ended."""
        return bool(select.select([self.fd], [], [], 0)[0])

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless it has ended."""
        if not self.ended():
            signal.pidfd_send_signal(self.fd, number)
