"""`python -m serve_app serve`: runs `serve_config.yaml` on this machine in a Ray of its own, and cleans up.

What it adds to `serve run`: a taken port, missing weights or a failed deployment is a message and an exit code,
a Ray that happens to run already is left alone, and the URL is printed once every stage is warm.
"""

from __future__ import annotations

import errno
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path
from types import FrameType

import httpx
import ray
import yaml
from ray import serve
from ray.serve.scripts import cli as serve_cli

from serve_app.errors import WeightsError
from serve_app.settings import AppSettings
from serve_app.weights import BUNDLED, ROOT, find

START_TIMEOUT_S = 300.0  # measured 25-40 s on two busy cores


class StartFailed(Exception):
    """The service did not come up; the message says why."""


def run(config_path: Path) -> None:
    """Serves until SIGINT or SIGTERM. Raises StartFailed."""
    signal.signal(signal.SIGTERM, _interrupt)
    config = yaml.safe_load(config_path.read_text())
    host, port = config["http_options"]["host"], config["http_options"]["port"]
    _check_port(host, port, config_path)
    try:
        weights = find(AppSettings.model_validate(config["applications"][0]["args"]).weights)
    except (WeightsError, ValueError) as error:
        raise StartFailed(str(error)) from error
    temp = tempfile.mkdtemp(prefix="ray-")  # short: Ray's socket paths may have 107 characters
    kind = "the bundled model" if weights == BUNDLED else "the weights"
    print(f"Starting with {kind} {weights}; Ray's files are in {temp}", flush=True)
    try:
        ray.init(address="local", namespace="serve", _temp_dir=temp)
        serve_cli.main(["run", "--non-blocking", str(config_path)], standalone_mode=False)
        url = f"http://{host}:{port}"
        _wait_until_ready(url)
        print(f"\nReady: {url} (API page {url}/docs). Try:\n\n  curl -F file=@{example()} {url}/v1/predict\n")
        print("Ctrl-C stops it.", flush=True)
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        print("\nStopping ...", flush=True)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it running
        if ray.is_initialized():
            serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()
        shutil.rmtree(temp, ignore_errors=True)


def example() -> Path:
    """A photo for the first try: the bus of the Ultralytics package, found without importing it (3 s)."""
    import importlib.util

    found = importlib.util.find_spec("ultralytics")
    folder = Path(found.origin).parent if found and found.origin else ROOT
    return folder / "assets" / "bus.jpg"


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _check_port(host: str, port: int, path: Path) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = f"cannot listen on {host}:{port}: {error.strerror}"
            if error.errno == errno.EADDRINUSE:
                message = f"port {port} is taken. Does the service run already? Else change http_options.port in {path}"
            raise StartFailed(message) from error


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        for name, app in serve.status().applications.items():
            if app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                stages = (f"{n}: {d.message}" for n, d in app.deployments.items() if d.message)
                raise StartFailed("\n".join([f"the application {name} failed: {app.message}", *stages]))
        try:
            if httpx.get(f"{url}/readyz", timeout=10).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise StartFailed(f"not ready after {START_TIMEOUT_S:g} s")
