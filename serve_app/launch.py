"""`python -m serve_app serve`: runs `serve_config.yaml` on this machine in a Ray of its own, and cleans up.

What it adds to `serve run`: a taken port, missing weights or a failed deployment is a message and an exit code,
a Ray that happens to run already is left alone, and the URL is printed once every stage is warm.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from pathlib import Path
from types import FrameType
from typing import Any

import click
import httpx
import ray
import yaml
from ray import serve
from ray.serve.scripts import cli as serve_cli

from serve_app import auth, configuration, loader, photos
from serve_app.errors import WeightsError
from serve_app.settings import AppSettings
from serve_app.weights import BUNDLED, ROOT

OPEN_FILES = 4096  # HAProxy asks for 2,587 at its MAXCONN of 1,024
START_TIMEOUT_S = 300.0  # measured 15-40 s on two busy cores


class StartFailed(Exception):
    """The service did not come up; the message says why."""


def run(config_path: Path, temp: Path) -> None:
    """Serves until SIGINT or SIGTERM, with Ray's files below `temp`. Raises StartFailed.

    SERVE_CONFIG_DIFFERENCE of the environment, as YAML, is laid over the file: so a container learns where to listen.
    """
    config, weights = check(config_path, os.environ.get("SERVE_CONFIG_DIFFERENCE", ""))
    host, port = config["http_options"]["host"], config["http_options"]["port"]
    check_open_files()
    check_port(host, port, config_path)
    config_path = temp / config_path.name
    config_path.write_text(yaml.safe_dump(config))
    stop_on_signals()
    kind = "the bundled model" if weights == str(BUNDLED) else "the weights"
    print(f"Starting with {kind} {weights}; Ray's files are in {temp}", flush=True)
    try:
        # Ray's own ports are open on all addresses of the machine, and who may use them may run code: Ray 2.60 asks
        # for a token on such a local cluster, unless RAY_AUTH_MODE says otherwise. Do not set it here: too late.
        ray.init(address="local", namespace="serve", _temp_dir=str(temp), _node_ip_address="127.0.0.1")
        stop_on_signals()  # Ray has put its own in place
        serve_cli.main(["run", "--non-blocking", str(config_path)], standalone_mode=False)
        url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104 - it asks, it does not listen
        wait_until_ready(url)
        print(f"\nReady: {url} (API page {url}/docs). Try:\n\n  curl -F file=@{example()} {url}/v1/predict\n")
        print("Ctrl-C stops it.", flush=True)
        while True:
            time.sleep(1)
    except (KeyboardInterrupt, click.Abort):
        print("\nStopping ...", flush=True)
    except SystemExit as error:  # how `serve run` ends when it cannot deploy, after it has printed why
        raise StartFailed("the configuration could not be deployed") from error
    finally:
        signal.alarm(0)  # Ray's own handler may have set one, and shutting down takes longer
        for late in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not leave half of it running
            signal.signal(late, signal.SIG_IGN)
        try:
            if ray.is_initialized():
                serve.shutdown()  # type: ignore[no-untyped-call]
        finally:
            ray.shutdown()


def check(path: Path, difference: str) -> tuple[dict[str, Any], str]:
    """The configuration, and the weights it names. Raises StartFailed for what would fail later, less clearly."""
    try:
        config = configuration.load(path, difference)
        settings = AppSettings.model_validate(config["applications"][0]["args"])
        if settings.api_keys_file:
            auth.read(ROOT / settings.api_keys_file)
        return config, loader.pin(settings.weights, settings).uri
    except OSError as error:
        raise StartFailed(f"cannot read {error.filename}: {error.strerror}") from error
    except (KeyError, IndexError, TypeError) as error:
        raise StartFailed(f"{path} lacks {error}") from error
    except (WeightsError, ValueError, yaml.YAMLError) as error:
        laid_over = " with SERVE_CONFIG_DIFFERENCE" if difference else ""
        raise StartFailed(f"{path}{laid_over}: {error}") from error


def check_port(host: str, port: int, path: Path) -> None:
    """Raises StartFailed when something listens there already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = f"cannot listen on {host}:{port}: {error.strerror}"
            if error.errno == errno.EADDRINUSE:
                message = f"port {port} is taken. Does the service run already? Else change http_options.port in {path}"
            raise StartFailed(message) from error


def check_open_files() -> None:
    """Raises StartFailed when HAProxy may not open what it needs: it would not start, and say so in the logs only."""
    if os.environ["RAY_SERVE_ENABLE_HA_PROXY"] != "1":
        return
    import resource  # not on Windows, where there is no HAProxy either

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < OPEN_FILES:
        cure = f"`ulimit -Hn`, or `docker run --ulimit nofile={OPEN_FILES}`"
        raise StartFailed(f"{most} files may be open, HAProxy needs {OPEN_FILES}: raise the limit, {cure}")


def wait_until_ready(url: str) -> None:
    """Returns when every stage is warm. Raises StartFailed when a deployment fails or it takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        for name, app in serve.status().applications.items():
            if app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                stages = (f"{n}: {d.message}" for n, d in app.deployments.items() if d.message)
                raise StartFailed("\n".join([f"the application {name} failed: {app.message}", *stages]))
        try:
            if httpx.get(f"{url}/readyz", timeout=10, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise StartFailed(f"not ready after {START_TIMEOUT_S:g} s")


def example() -> Path:
    """A photo for the first try, as one would type its path."""
    photo = photos.files()[0]
    return photo.relative_to(Path.cwd()) if photo.is_relative_to(Path.cwd()) else photo


def stop_on_signals() -> None:
    """SIGINT, even where a shell's `&` had it ignored, and SIGTERM as a service manager sends it."""
    for sent in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sent, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
