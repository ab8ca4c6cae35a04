"""Starts and stops the real service in its own process, on a free port, for tests and measurements."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

import httpx
import psutil
import yaml

from serve_app.ops import serve_config, service_folder
from serve_app.ops.ray_environment import listening, reserve
from serve_app.ops.service_folder import API, RunningService

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 300
READY = "Ready:"  # start of the line that `serve_app serve` prints once it answers


class Service(NamedTuple):
    """A running service: its URL, the lines printed so far, and the PID of the process that started all others."""

    url: str
    lines: list[str]
    pid: int


class NotStarted(Exception):
    """The service exited, or START_TIMEOUT_S passed, before it was ready. The message is its output."""


def free_port() -> int:
    """Returns a free TCP port of 127.0.0.1 outside the ranges Ray uses (10002-19999, 30000-31000). Raises OSError.

    The UDP port of the same number stays bound until this process ends. It reserves the TCP port against other callers,
    in this process and in others.
    """
    for port in range(8400, 9900):  # Ray's dashboard takes 8265 or one of the next
        if reserve(port) and not listening(port):
            return port
    raise OSError("no free port between 8400 and 9900")


def config(port: int, **args: str | float) -> dict[str, Any]:
    """`serve_config.yaml` with another port and with some of the application's arguments replaced."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    content["http_options"]["port"] = port
    content["applications"][0]["args"].update(args)
    return content


def shipped(difference: str, **args: str | float) -> dict[str, Any]:
    """`config` on a free port, with `difference` (YAML) merged over it."""
    content: dict[str, Any] = serve_config.merged(config(free_port(), **args), yaml.safe_load(difference) or {})
    if content["applications"][0]["import_path"].startswith("loadtests."):
        os.environ["PYTHONPATH"] = str(ROOT)  # the replicas import the application from here
    return content


@contextmanager
def running(
    content: dict[str, Any],
    stop: signal.Signals = signal.SIGINT,
    env: dict[str, str] | None = None,
    root: Path = ROOT,
) -> Iterator[Service]:
    """Starts the service, yields it once it is ready, and stops it at the end. Raises NotStarted.

    `stop` is the signal that stops it; `env` is added to its environment; `root` is the repository. If Ray itself does
    not start, which it gives 30 s on however busy a machine, it is started once more.
    """
    with ExitStack() as stack:
        try:
            service = stack.enter_context(_once(content, stop, env, root))
        except NotStarted as error:
            if "Ray did not start" not in str(error):
                raise
            service = stack.enter_context(_once(content, stop, env, root))
        yield service


@contextmanager
def _once(content: dict[str, Any], stop: signal.Signals, env: dict[str, str] | None, root: Path) -> Iterator[Service]:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(content, file)
        file.flush()
        turn = _turn_to_start()
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_app", "serve", "--config", file.name],
            cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True, env=os.environ | (env or {}),
        )  # fmt: skip
        lines: list[str] = []
        startup_over = threading.Event()
        assert process.stdout
        reader = threading.Thread(target=_read, args=(process.stdout, lines, startup_over))
        reader.start()
        try:
            with turn:
                startup_over.wait(START_TIMEOUT_S)
            if not any(line.startswith(READY) for line in lines):
                raise NotStarted("".join(lines))
            http = content["http_options"]
            yield Service(f"http://{http['host']}:{http['port']}", lines, process.pid)
        finally:
            process.send_signal(stop)
            try:
                process.wait(60)
            finally:
                process.kill()
                reader.join()
                process.stdout.close()


def _turn_to_start() -> TextIO:
    """Waits until nobody else starts a service. The turn ends when the caller closes the file.

    A Ray node that needs more than 30 s to start gives up: of four that started together on two cores, one did.
    """
    file = (Path(tempfile.gettempdir()) / "image-recognition-start.lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def deploy(service: Service, content: dict[str, Any]) -> None:
    """Applies a changed configuration by Serve's REST API, and does not wait for it. Raises httpx.HTTPError."""
    record = announced(service)
    url, token = f"{record.dashboard}{API}", record.authorization
    answer = httpx.put(url, json=content, headers=token, timeout=300, trust_env=False)
    answer.raise_for_status()


def ray_files(service: Service) -> Path:
    """The temporary folder of the service's Ray, which is deleted when the service stops."""
    begin = "Ray's files are in "
    return Path(next(line for line in service.lines if begin in line).partition(begin)[2].strip())


def announced(service: Service) -> RunningService:
    """What the service tells other commands: where Ray's dashboard is, and its token."""
    found = service_folder.read(ray_files(service).parent)
    assert found
    return found


def dashboard(service: Service) -> str:
    """The URL of Ray's dashboard, which also serves Serve's REST API."""
    return announced(service).dashboard


def status(service: Service, name: str = "recognition") -> dict[str, Any]:
    """An application as Serve reports it: `status`, and `deployments` with their replicas.

    Raises httpx.HTTPError, or KeyError when there is no such application.
    """
    record = announced(service)
    url, token = f"{record.dashboard}{API}", record.authorization
    answer = httpx.get(url, headers=token, timeout=30, trust_env=False)
    return dict(answer.raise_for_status().json()["applications"][name])


def model(service: Service) -> dict[str, Any]:
    """The model that `/v1/models` reports. Raises httpx.HTTPError."""
    answer = httpx.get(f"{service.url}/v1/models", timeout=60, trust_env=False)
    found: dict[str, Any] = answer.raise_for_status().json()["models"][0]
    return found


def command(process: psutil.Process) -> str:
    """The command line of a process; empty when the process has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def detector(content: dict[str, Any]) -> dict[str, Any]:
    """The deployment with the Detector, the only one with a `user_config`."""
    found: dict[str, Any] = next(d for d in content["applications"][0]["deployments"] if "user_config" in d)
    return found


def _read(output: IO[str], lines: list[str], startup_over: threading.Event) -> None:
    for line in output:
        lines.append(line)
        if line.startswith(READY):
            startup_over.set()
    startup_over.set()  # end of the output: the service will never be ready
