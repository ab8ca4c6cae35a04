"""Starts the real service in a process of its own, on a free port, and stops it: for tests and measurements."""

from __future__ import annotations

import os
import signal
import socket
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

from serve_app import configuration

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 300
READY = "Ready:"  # how the line begins that `serve_app serve` prints once it answers


class Service(NamedTuple):
    """A running service: its address, what it has printed so far, and the process all others descend from."""

    url: str
    lines: list[str]
    pid: int


class NotStarted(Exception):
    """The service ended before it was ready; the message is its output."""


def free_port(first: int = 8100) -> int:
    """A TCP port of 127.0.0.1 that nothing listens on, outside the ranges Ray uses (10002-19999, 30000-31000)."""
    for port in range(first, 9900):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise OSError(f"no free port between {first} and 9900")


def config(port: int, **args: str | float) -> dict[str, Any]:
    """`serve_config.yaml` on another port, with some of the application's arguments replaced."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    content["http_options"]["port"] = port
    content["applications"][0]["args"].update(args)
    return content


def shipped(difference: str) -> dict[str, Any]:
    """`serve_config.yaml` on a free port, with YAML laid over it."""
    content: dict[str, Any] = configuration.merged(config(free_port()), yaml.safe_load(difference) or {})
    if content["applications"][0]["import_path"].startswith("loadtests."):
        os.environ["PYTHONPATH"] = str(ROOT)  # where the replicas find it
    return content


@contextmanager
def running(
    content: dict[str, Any], stop: signal.Signals = signal.SIGINT, env: dict[str, str] | None = None
) -> Iterator[Service]:
    """Yields the service once it is ready, `env` added to its environment; stops it at the end. Raises NotStarted."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(content, file)
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_app", "serve", "--config", file.name],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True, env=os.environ | (env or {}),
        )  # fmt: skip
        lines: list[str] = []
        told = threading.Event()
        assert process.stdout
        reader = threading.Thread(target=_read, args=(process.stdout, lines, told))
        reader.start()
        try:
            told.wait(START_TIMEOUT_S)
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
    """What an operator types to apply a changed configuration. Raises CalledProcessError."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(content, file)
        file.flush()
        typed = [f"{Path(sys.executable).parent}/serve", "deploy", "-a", dashboard(service), file.name]
        env = os.environ | {"RAY_AUTH_MODE": "token"}
        subprocess.run(typed, capture_output=True, timeout=60, check=True, env=env)


def ray_files(service: Service) -> Path:
    """The folder of its Ray, which goes with it."""
    return Path(next(line for line in service.lines if "Ray's files are in" in line).split()[-1])


def dashboard(service: Service) -> str:
    """Where Ray's dashboard answers, which is Serve's API too."""
    family = psutil.Process(service.pid).children(recursive=True)
    (process,) = (p for p in family if "dashboard.py" in command(p))
    ports = [c.laddr.port for c in process.net_connections("tcp") if c.laddr.ip == "127.0.0.1" and not c.raddr]
    return f"http://127.0.0.1:{ports[0]}"


def status(service: Service) -> dict[str, Any]:
    """Serve's own account of the application: `status`, and its `deployments` with their replicas."""
    token = {"Authorization": f"Bearer {(Path.home() / '.ray' / 'auth_token').read_text().strip()}"}
    answer = httpx.get(f"{dashboard(service)}/api/serve/applications/", headers=token, timeout=30, trust_env=False)
    (application,) = answer.raise_for_status().json()["applications"].values()
    return dict(application)


def model(service: Service) -> dict[str, Any]:
    """What the service says of its weights. Raises HTTPError."""
    answer = httpx.get(f"{service.url}/v1/models", timeout=60, trust_env=False)
    found: dict[str, Any] = answer.raise_for_status().json()["models"][0]
    return found


def command(process: psutil.Process) -> str:
    """What a process runs; nothing when it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def detector(content: dict[str, Any]) -> dict[str, Any]:
    """The deployment that holds the Detector, to change its `user_config`."""
    found: dict[str, Any] = next(d for d in content["applications"][0]["deployments"] if "user_config" in d)
    return found


def _read(output: IO[str], lines: list[str], told: threading.Event) -> None:
    for line in output:
        lines.append(line)
        if line.startswith(READY):
            told.set()
    told.set()  # the end of the output: it will never be ready
