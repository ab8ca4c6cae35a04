"""A real HAProxy, started by the keeper's program as Serve's manager starts it, while each of the three processes dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from ray.serve._private.constants import DRAINING_MESSAGE
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from loadtests.service import free_port
from serve_app.http.schemas import OPEN_TO_PAGES
from serve_app.ops import haproxy_keeper
from serve_app.ops.haproxy_keeper import Configuration, let_go
from serve_app.ops.process import Process
from serve_app.ops.ray_environment import problem
from tests.conftest import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="HAProxy is for Linux only")

PROGRAM = Path(sys.prefix) / "bin" / "haproxy-keeper"
EMPTY = """\
global
    stats socket {folder}/admin.sock mode 666 level admin expose-fd listeners
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option idle-close-on-response
frontend http_frontend
    bind 127.0.0.1:{port}
    # mirroring the use_backend rules below.
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found."
"""
ROUTES = EMPTY.replace("    default_backend ", "    use_backend app if {{ path_beg / }}\n    default_backend ") + (
    'backend app\n    http-request return status 200 content-type text/plain string "an answer"\n'
)
# Starts HAProxy as Ray's manager does: with the first configuration, then a reload for each of the others.
MANAGER = """
import json, os, pathlib, subprocess, sys, time
program, file, given = sys.argv[1], pathlib.Path(sys.argv[2]), json.loads(sys.argv[3])
def start(text, *more):
    file.write_text(text)
    os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"] = program
    process = subprocess.Popen([program, "-db", "-f", str(file), "-dR", *more])
    sys.path.insert(0, os.getcwd())
    from serve_app.ops.haproxy_keeper import Configuration
    while Configuration(file).running() != process.pid:
        assert process.poll() is None
        time.sleep(0.05)
    return str(process.pid)
before = start(given[0])
for text in given[1:]:
    before = start(text, "-sf", before, "-x", str(file.parent / "admin.sock"))
print("started", flush=True)
while True:
    time.sleep(1)
"""
RAYLET = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", *sys.argv[1:]]).wait(), flush=True)
time.sleep(600)
"""


class Node:
    """A folder with HAProxy's files, and the processes that a node of Ray would have."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1/models"
        self.file = folder / "haproxy.cfg"
        self.raylets: list[subprocess.Popen[str]] = []

    def manager(self, *texts: str) -> psutil.Process:
        """Starts a raylet with a manager that uses these configurations, and waits until the last one is in use."""
        given = json.dumps([text.format(folder=self.folder, port=self.port) for text in texts])
        typed = [sys.executable, "-c", RAYLET, MANAGER, str(PROGRAM), str(self.file), given]
        self.raylets.append(subprocess.Popen(typed, stdout=subprocess.PIPE, text=True))
        assert self.raylets[-1].stdout
        assert self.raylets[-1].stdout.readline() == "started\n"
        (manager,) = psutil.Process(self.raylets[-1].pid).children()
        return manager

    def haproxy(self) -> int | None:
        return Configuration(self.file).running()

    def ask(self) -> httpx.Response:
        return httpx.get(self.url, timeout=10, trust_env=False)

    @contextmanager
    def asked(self) -> Iterator[list[int | str]]:
        """Sends one request after the other, half of them on new connections; yields the statuses and errors."""
        seen: list[int | str] = []
        stop = threading.Event()

        def send(keep: bool) -> None:
            with httpx.Client(trust_env=False, timeout=10) as kept:
                while not stop.is_set():
                    try:
                        seen.append((kept.get(self.url) if keep else self.ask()).status_code)
                    except httpx.TransportError as error:
                        seen.append(repr(error))
                    time.sleep(0.005)

        threads = [threading.Thread(target=send, args=(keep,)) for keep in (True, False)]
        for thread in threads:
            thread.start()
        try:
            yield seen
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def end(self) -> None:
        let_go(self.folder)
        for raylet in self.raylets:
            for process in (*psutil.Process(raylet.pid).children(recursive=True), raylet):
                process.kill()
            raylet.wait()
            assert raylet.stdout
            raylet.stdout.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    try:
        yield node
    finally:
        node.end()
        eventually(lambda: node.haproxy() is None)


def test_haproxy_outlives_its_manager(node: Node) -> None:
    manager = node.manager(EMPTY, ROUTES)
    before = node.haproxy()
    with node.asked() as seen:
        manager.kill()
        manager.wait()
        eventually(lambda: len(seen) > 100)
        assert node.haproxy() == before
        node.manager(EMPTY)
        assert node.haproxy() not in (before, None), "the next manager's own"
        node.manager(EMPTY, ROUTES)
        count = len(seen)
        eventually(lambda: len(seen) > count + 100)
    assert set(seen) == {200}


def test_a_dead_haproxy_is_replaced_and_its_manager_ends(node: Node) -> None:
    manager = node.manager(EMPTY, ROUTES)
    before = node.haproxy()
    assert before
    os.kill(before, signal.SIGKILL)
    manager.wait(60)
    eventually(lambda: node.haproxy() is not None)
    assert node.haproxy() != before
    assert node.ask().text == "an answer"
    node.manager(EMPTY)
    assert node.ask().text == "an answer", "the next manager takes over"


def test_a_frozen_haproxy_is_replaced(node: Node) -> None:
    node.manager(EMPTY, ROUTES)
    before = node.haproxy()
    assert before
    os.kill(before, signal.SIGSTOP)
    eventually(lambda: not psutil.pid_exists(before))
    eventually(lambda: node.haproxy() is not None)
    assert node.ask().text == "an answer"


def test_haproxy_ends_with_ray(node: Node) -> None:
    manager = node.manager(EMPTY, ROUTES)
    node.raylets[0].kill()
    eventually(lambda: node.haproxy() is None)
    manager.kill()


@pytest.mark.parametrize("last", ["let go", "no routes", "drained"])
def test_what_was_stopped_stays_stopped(node: Node, last: str) -> None:
    texts = {"no routes": [EMPTY], "drained": [ROUTES.replace("an answer", DRAINING_MESSAGE)]}.get(last, [])
    manager = node.manager(EMPTY, ROUTES, *texts)
    if last == "let go":
        let_go(node.folder)
    pid = node.haproxy()
    assert pid
    os.kill(pid, signal.SIGKILL)
    time.sleep(3 * haproxy_keeper.CHECK_S)  # a keeper would have started it by then
    assert node.haproxy() is None
    assert manager.is_running()


def test_an_emptied_node_loses_no_request(node: Node) -> None:
    manager = node.manager(EMPTY, ROUTES)
    with node.asked() as seen:
        eventually(lambda: len(seen) > 100)
        haproxy_keeper.drain(node.folder, 2)
        kept = seen[:]
    assert 200 in kept
    refused = {answer for answer in kept if answer != 200}
    assert all("ConnectError" in str(one) for one in refused), "new connections only, and they were never accepted"
    assert node.haproxy() is None
    assert manager.is_running(), "the node's Serve stops later"


def test_without_a_route_clients_are_told_to_come_back(node: Node) -> None:
    node.manager(EMPTY)
    answer = node.ask()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.text == problem(503, "not_ready")
    assert {name: answer.headers[name] for name in OPEN_TO_PAGES} == OPEN_TO_PAGES


def test_ray_writes_what_the_keeper_looks_for() -> None:
    assert f"\n{haproxy_keeper.NOT_FOUND}" in HAPROXY_CONFIG_TEMPLATE
    assert "\n    stats socket {{ config.socket_path }}" in HAPROXY_CONFIG_TEMPLATE
    assert f"{haproxy_keeper.ROUTE}{{{{ backend.name" in HAPROXY_CONFIG_TEMPLATE
    assert haproxy_keeper.DRAINING == DRAINING_MESSAGE


@pytest.mark.parametrize("known", [True, False])
def test_a_haproxy_that_no_manager_takes_over_ends(node: Node, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """In this process, because a program of its own would wait for HANDOVER_S.

    Not `known`: its manager died before the keeper had seen the two, and so it has another parent by now.
    """
    killed = node.manager(EMPTY, ROUTES)
    pid = node.haproxy()
    assert pid
    raylet, manager, haproxy = (Process(p) for p in (node.raylets[0].pid, killed.pid, pid))
    killed.kill()
    killed.wait()
    monkeypatch.setattr(haproxy_keeper, "HANDOVER_S", 0.5)
    monkeypatch.setattr(haproxy_keeper.os, "getppid", haproxy.parent)
    with subprocess.Popen(["sleep", "60"]) as old:
        before = haproxy if known else Process(old.pid)
        haproxy_keeper.keep(Configuration(node.file), [], before, manager, raylet)
        old.kill()
    assert node.haproxy() is None
