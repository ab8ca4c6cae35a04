"""Starts and stops the real service in its own process, on a free port, for tests and measurements."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import httpx
import psutil
import yaml

from serve_app.ops import serve_config
from serve_app.ops.ray_environment import listening, reserve

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


def shipped(difference: str) -> dict[str, Any]:
    """`serve_config.yaml` on a free port, with `difference` (YAML) merged over it."""
    content: dict[str, Any] = serve_config.merged(config(free_port()), yaml.safe_load(difference) or {})
    if content["applications"][0]["import_path"].startswith("loadtests."):
        os.environ["PYTHONPATH"] = str(ROOT)  # the replicas import the application from here
    return content


@contextmanager
def running(
    content: dict[str, Any], stop: signal.Signals = signal.SIGINT, env: dict[str, str] | None = None
) -> Iterator[Service]:
    """Starts the service, yields it once it is ready, and stops it at the end. Raises NotStarted.

    `stop` is the signal that stops it; `env` is added to its environment.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(content, file)
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_app", "serve", "--config", file.name],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True, env=os.environ | (env or {}),
        )  # fmt: skip
        lines: list[str] = []
        startup_over = threading.Event()
        assert process.stdout
        reader = threading.Thread(target=_read, args=(process.stdout, lines, startup_over))
        reader.start()
        try:
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


def deploy(service: Service, content: dict[str, Any]) -> None:
    """Applies a changed configuration with `serve deploy`, as an operator does.

    Raises CalledProcessError, or TimeoutExpired after 60 s.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(content, file)
        file.flush()
        arguments = [f"{Path(sys.executable).parent}/serve", "deploy", "-a", dashboard(service), file.name]
        env = os.environ | {"RAY_AUTH_MODE": "token"}
        subprocess.run(arguments, capture_output=True, timeout=300, check=True, env=env)


def ray_files(service: Service) -> Path:
    """The temporary folder of the service's Ray, which is deleted when the service stops."""
    return Path(next(line for line in service.lines if "Ray's files are in" in line).split()[-1])


def dashboard(service: Service) -> str:
    """The URL of Ray's dashboard, which also serves Serve's REST API."""
    family = psutil.Process(service.pid).children(recursive=True)
    (process,) = (p for p in family if "dashboard.py" in command(p))
    ports = [c.laddr.port for c in process.net_connections("tcp") if c.laddr.ip == "127.0.0.1" and not c.raddr]
    return f"http://127.0.0.1:{ports[0]}"


def status(service: Service) -> dict[str, Any]:
    """The application as Serve reports it: `status`, and `deployments` with their replicas. Raises httpx.HTTPError."""
    token = {"Authorization": f"Bearer {(Path.home() / '.ray' / 'auth_token').read_text().strip()}"}
    answer = httpx.get(f"{dashboard(service)}/api/serve/applications/", headers=token, timeout=30, trust_env=False)
    (application,) = answer.raise_for_status().json()["applications"].values()
    return dict(application)


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
