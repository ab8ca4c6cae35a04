"""A process whose event loop shows no life is killed, whatever keeps it; one that lives or pauses with its watchdog is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from tests.conftest import ROOT

FROZEN_S = 3  # a loop on busy cores may be a second late
WATCHED = f"""
import asyncio, re, sys
from serve_app.graph import process_watchdog
process_watchdog.FROZEN_S = {FROZEN_S}
async def main():
    process_watchdog.watch()
    process_watchdog.watch()
    print("watched", flush=True)
    await asyncio.sleep(1)
    exec(sys.argv[1])
    await asyncio.sleep(3600)
asyncio.run(main())
"""
HOLDS_THE_INTERPRETER = "re.match('(a+)+$', 'a' * 64 + 'b')"  # one call in C that never ends


@pytest.fixture
def watched(request: pytest.FixtureRequest) -> Iterator[psutil.Popen]:
    """A process that does what the parameter says, a second after its watchdog has started."""
    line = [sys.executable, "-c", WATCHED, getattr(request, "param", "")]
    with psutil.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "watched\n"
        try:
            yield process
        finally:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.mark.parametrize("watched", ["import time; time.sleep(3600)", HOLDS_THE_INTERPRETER], indirect=True)
def test_a_loop_that_hangs_is_killed(watched: psutil.Popen) -> None:
    assert watched.wait(60) == -signal.SIGKILL
    assert f"process {watched.pid} has shown no life for {FROZEN_S} s and is killed" in watched.stderr.read()


def test_a_stopped_process_is_killed(watched: psutil.Popen) -> None:
    watched.suspend()
    assert watched.wait(60) == -signal.SIGKILL


def test_a_pause_of_the_whole_machine_kills_nobody(watched: psutil.Popen) -> None:
    (child,) = watched.children()
    for process in (watched, child):
        process.suspend()
    time.sleep(2 * FROZEN_S)
    for process in (child, watched):
        process.resume()
    time.sleep(2 * FROZEN_S)
    assert watched.is_running()
    assert watched.children() == [child], "one, however often it was asked for"


def test_the_watchdog_ends_with_its_process(watched: psutil.Popen) -> None:
    (child,) = watched.children()
    assert os.getsid(child.pid) != os.getsid(watched.pid), "a Ctrl-C in the terminal is not for it"
    watched.kill()
    child.wait(60)


def test_without_its_watchdog_a_process_goes_on(watched: psutil.Popen) -> None:
    (child,) = watched.children()
    child.kill()
    time.sleep(2 * FROZEN_S)
    assert watched.is_running()
    watched.kill()
    assert "the watchdog of this process has died" in watched.stderr.read()
