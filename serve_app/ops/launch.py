"""`python -m serve_app serve`: runs `serve_config.yaml` on this machine in its own local Ray, and cleans up.

Compared with `serve run`, it reports a port in use, missing weights or a failed deployment with a message and an exit
code, does not touch a Ray that already runs, and prints the URL when every stage is warm.
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

from serve_app.errors import WeightsError
from serve_app.http import auth
from serve_app.ops import serve_config
from serve_app.settings import ROOT, AppSettings
from serve_app.vision import sample_photos
from serve_app.weights import loader
from serve_app.weights.identity import BUNDLED

OPEN_FILES = 4096  # HAProxy needs 2,587 with its MAXCONN of 1,024
START_TIMEOUT_S = 300.0  # a start took 15-40 s on two busy cores


class StartFailed(Exception):
    """The service did not start. The message says why."""


def run(config_path: Path, temp: Path) -> None:
    """Serves until SIGINT or SIGTERM, with Ray's files below `temp`. Raises StartFailed.

    Merges the environment variable SERVE_CONFIG_DIFFERENCE (YAML) into the file. The container sets its host that way.
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
        # Ray's ports are open on all addresses of the machine, and anybody who may use them can run code. Ray 2.60 asks
        # for a token on such a local cluster unless RAY_AUTH_MODE says otherwise. Here it is too late to set that.
        ray.init(address="local", namespace="serve", _temp_dir=str(temp), _node_ip_address="127.0.0.1")
        stop_on_signals()  # again, because ray.init installs its own handlers
        serve_cli.main(["run", "--non-blocking", str(config_path)], standalone_mode=False)
        url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104 - compared, not bound
        wait_until_ready(url)
        print(f"\nReady: {url} (API page {url}/docs). Try:\n\n  curl -F file=@{example()} {url}/v1/predict\n")
        print("Ctrl-C stops it.", flush=True)
        while True:
            time.sleep(1)
    except (KeyboardInterrupt, click.Abort):
        print("\nStopping ...", flush=True)
    except SystemExit as error:  # `serve run` prints the reason and exits when it cannot deploy
        raise StartFailed("Serve could not deploy the configuration; its message is above") from error
    finally:
        signal.alarm(0)  # Ray's handler may have set an alarm, which would end the shutdown too early
        for late in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not interrupt the shutdown
            signal.signal(late, signal.SIG_IGN)
        try:
            if ray.is_initialized():
                serve.shutdown()  # type: ignore[no-untyped-call]
        finally:
            ray.shutdown()


def check(path: Path, difference: str) -> tuple[dict[str, Any], str]:
    """The configuration, and the pinned URI of its weights.

    Raises StartFailed for errors that would otherwise appear later and with a less clear message.
    """
    try:
        config = serve_config.load(path, difference)
        settings = AppSettings.model_validate(config["applications"][0]["args"])
        if settings.api_keys_file:
            auth.read(ROOT / settings.api_keys_file)
        return config, loader.pin(settings.weights, settings).uri
    except OSError as error:
        raise StartFailed(f"cannot read {error.filename}: {error.strerror}") from error
    except (KeyError, IndexError, TypeError) as error:
        raise StartFailed(f"{path} is not a complete Serve configuration: {error!r}") from error
    except (WeightsError, ValueError, yaml.YAMLError) as error:
        laid_over = " with SERVE_CONFIG_DIFFERENCE" if difference else ""
        raise StartFailed(f"{path}{laid_over}: {error}") from error


def check_port(host: str, port: int, path: Path) -> None:
    """Raises StartFailed when nothing can listen on `host` and `port`, for example because the port is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = f"cannot listen on {host}:{port}: {error.strerror}"
            if error.errno == errno.EADDRINUSE:
                message = (
                    f"port {port} is in use, perhaps by this service: stop it, or change http_options.port in {path}"
                )
            raise StartFailed(message) from error


def check_open_files() -> None:
    """Raises StartFailed when the limit on open files is too low for HAProxy.

    HAProxy would not start, and would report that only in the logs.
    """
    if os.environ["RAY_SERVE_ENABLE_HA_PROXY"] != "1":
        return
    import resource  # does not exist on Windows, which has no HAProxy either

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < OPEN_FILES:
        fix = f"raise it with `ulimit -Hn` or `docker run --ulimit nofile={OPEN_FILES}`"
        raise StartFailed(f"the limit on open files is {most}, but HAProxy needs {OPEN_FILES}: {fix}")


def wait_until_ready(url: str) -> None:
    """Returns when every stage is warm. Raises StartFailed when a deployment fails, or after START_TIMEOUT_S."""
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
    raise StartFailed(f"the service is not ready after {START_TIMEOUT_S:g} s")


def example() -> Path:
    """The path of a sample photo, relative to the current folder if possible."""
    photo = sample_photos.files()[0]
    return photo.relative_to(Path.cwd()) if photo.is_relative_to(Path.cwd()) else photo


def stop_on_signals() -> None:
    """Makes SIGINT and SIGTERM raise KeyboardInterrupt.

    SIGINT needs a handler because a shell's `&` makes the process ignore it. Service managers send SIGTERM.
    """
    for sent in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sent, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
