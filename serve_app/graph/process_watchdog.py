"""The process watchdog: a child process that kills its parent when the parent's event loop shows no life for FROZEN_S.

A frozen process, stopped or in a native call that keeps the interpreter, closes no connection, so its requests wait for
it. Serve alone replaces it after 99 s. Once it is killed, its requests are sent again, as after any death.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from functools import cache

logger = logging.getLogger("ray.serve")
FROZEN_S = 12  # a freeze of 10 s that passes loses no request; a new replica would take as long again
# It counts its own waits of a second instead of reading a clock: a pause of the whole machine counts as one of them.
CHILD = """
import os, select, signal, sys
parent, silent, frozen_s = os.getppid(), 0, int(sys.argv[1])
while silent < frozen_s and os.getppid() == parent:
    silent += 1
    if select.select([0], [], [], 1)[0]:
        silent = 0
        if not os.read(0, 65536):
            sys.exit()
if os.getppid() == parent:
    print(f"process {parent} has shown no life for {frozen_s} s and is killed", file=sys.stderr, flush=True)
    os.kill(parent, signal.SIGKILL)
"""


@cache
def watch() -> None:
    """Starts the watchdog of this process, once, in its running event loop. If that fails, logs an error."""
    try:
        child = subprocess.Popen(  # noqa: S603 - this interpreter, and the text above
            [sys.executable, "-ISc", CHILD, str(FROZEN_S)], stdin=subprocess.PIPE, start_new_session=True, cwd="/"
        )
    except OSError:
        logger.exception("this process has no watchdog")
        return
    loop, pipe = asyncio.get_running_loop(), child.stdin
    assert pipe

    def show_life() -> None:
        try:
            os.write(pipe.fileno(), b".")
        except BrokenPipeError:
            logger.error("the watchdog of this process has died")
        else:
            loop.call_later(1, show_life)

    show_life()
