"""`python -m serve_app serve`: runs `serve_config.yaml` on this machine in its own local Ray, and cleans up.

Compared with `serve run`, it reports a port in use, missing weights or a failed deployment with a message and an exit
code, does not touch a Ray that already runs, and prints the URL when every stage is warm.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import click
import httpx
import ray
import yaml
from ray import serve
from ray.serve.scripts import cli as serve_cli

from serve_app.errors import CommandFailed
from serve_app.ops import haproxy_keeper, preflight, serve_config, service_folder
from serve_app.ops.service_folder import RAY, RunningService
from serve_app.ops.signals import stop_on_signals
from serve_app.vision import sample_photos
from serve_app.weights.identity import BUNDLED

START_TIMEOUT_S = 300.0  # a start took 15-40 s on two busy cores


def run(config_path: Path, folder: Path) -> None:
    """Serves until SIGINT or SIGTERM, with all its files below `folder`. Raises CommandFailed.

    Merges the environment variable SERVE_CONFIG_DIFFERENCE (YAML) into the file. The container sets its host that way.
    """
    difference = os.environ.get("SERVE_CONFIG_DIFFERENCE", "")
    checked = preflight.check(config_path, difference)
    preflight.check_haproxy()
    host = preflight.address(checked.host, checked.port, config_path)
    url = preflight.url(host, checked.port)
    file = folder / "serve_config.yaml"
    file.write_text(yaml.safe_dump(serve_config.merged(checked.content, {"http_options": {"host": host}})))
    stop_on_signals()
    kind = "the bundled model" if checked.weights == str(BUNDLED) else "the weights"
    print(f"Starting with {kind} {checked.weights}; Ray's files are in {folder / RAY}", flush=True)
    try:
        try:
            own = ray.init(
                address="local", namespace="serve", _temp_dir=str(folder / RAY), _node_ip_address="127.0.0.1"
            )
        except Exception as error:  # Ray has no class for it, e.g. when its node needs more than 30 s on a busy machine
            raise CommandFailed(f"Ray did not start: {preflight.one_line(error)}") from error
        stop_on_signals()  # again, because ray.init installs its own handlers
        serve_cli.main(["run", "--non-blocking", str(file)], standalone_mode=False)
        wait_until_ready(url + checked.path)
        dashboard = f"http://{own.dashboard_url}"
        service = RunningService(url, dashboard, service_folder.token(), difference, str(folder))
        service.config.write_text(yaml.safe_dump(checked.content))
        with service_folder.announced(service):
            print(f"\nReady: {url}{checked.path.rstrip('/')} (API page {url}{checked.path}docs). Try:\n")
            print(f"  curl -F file=@{example()} {url}{checked.path}v1/predict\n\nCtrl-C stops it.", flush=True)
            while alive():
                time.sleep(1)
            raise CommandFailed("Ray's node has died: start the service again")
    except (KeyboardInterrupt, click.Abort):
        print("\nStopping ...", flush=True)
    except SystemExit as error:  # `serve run` prints the reason and exits when it cannot deploy
        raise CommandFailed("Serve could not deploy the configuration; its message is above") from error
    finally:
        signal.alarm(0)  # Ray's handler may have set an alarm, which would end the shutdown too early
        for late in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not interrupt the shutdown
            signal.signal(late, signal.SIG_IGN)
        try:
            haproxy_keeper.let_go(folder)
            if ray.is_initialized() and alive():  # it would wait in vain for a dead one
                serve.shutdown()  # type: ignore[no-untyped-call]
        finally:
            ray.shutdown()


def alive() -> bool:
    """Whether Ray's node lives. If its GCS dies, Ray ends this process after 60 s."""
    return any(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]


def wait_until_ready(application: str) -> None:
    """Returns when every stage of the application at a URL that ends with a slash is warm, and all others run.

    Raises CommandFailed when a deployment fails, or after START_TIMEOUT_S.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        applications = serve.status().applications
        for name, app in applications.items():
            if app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                stages = [deployment.message for deployment in app.deployments.values()]
                raise CommandFailed(preflight.failure(name, [app.message, *stages]))
        try:
            warm = httpx.get(f"{application}readyz", timeout=10, trust_env=False).status_code == httpx.codes.OK
            if warm and all(app.status == "RUNNING" for app in applications.values()):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise CommandFailed(f"the service is not ready after {START_TIMEOUT_S:g} s")


def example() -> Path:
    """The path of a sample photo, relative to the current folder if possible."""
    photo = sample_photos.files()[0]
    return photo.relative_to(Path.cwd()) if photo.is_relative_to(Path.cwd()) else photo
