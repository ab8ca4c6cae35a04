"""What `serve` and `deploy` check before anything runs, so that a mistake is one line and not a log of Ray's."""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from serve_app.errors import CommandFailed, WeightsError
from serve_app.http import auth
from serve_app.ops import serve_config
from serve_app.settings import ROOT, AppSettings, DetectorSettings
from serve_app.weights import loader

OPEN_FILES = 4096  # HAProxy needs 2,587 with its MAXCONN of 1,024
ROUTE_PREFIX = re.compile(r"/|(/[A-Za-z0-9._~-]+)+")
# Replicas listen at the same address as HAProxy, which looks for them at 127.0.0.1.
REACHABLE = ("127.0.0.1", "0.0.0.0", "::")  # noqa: S104 - compared, not bound
# Addresses that mean all of the machine's, and where to ask then. Ray's HAProxy takes "::" for those of IPv4 only.
ANY = {"0.0.0.0": "127.0.0.1", "::0": "::1"}  # noqa: S104 - compared, not bound


class Checked(NamedTuple):
    """A configuration that can be served."""

    content: dict[str, Any]
    weights: str  # their pinned URI
    host: str
    port: int
    path: str  # of our application, the first one; ends with a slash


def check(path: Path, difference: str) -> Checked:
    """The configuration in a file, merged with `difference` (YAML). Raises CommandFailed."""
    with reported(path, difference):
        content = serve_config.load(path, difference)
        schema = ServeDeploySchema.model_validate(content)
        if not schema.applications:
            raise ValueError("not a complete Serve configuration: it has no application")
        first, *others = schema.applications
        weights = check_application(first)
        for other in others:
            if other.import_path == first.import_path:
                check_application(other)
        prefix, http = str(first.route_prefix), schema.http_options
        return Checked(content, weights, http.host, http.port, prefix.rstrip("/") + "/")


def check_application(application: ServeApplicationSchema) -> str:
    """The pinned URI of its weights. Raises ValueError, OSError or WeightsError."""
    prefix, settings = application.route_prefix, AppSettings.model_validate(application.args)
    if not prefix or not ROUTE_PREFIX.fullmatch(prefix):
        raise ValueError(f"route_prefix {prefix!r} is not a path like / or /photos")
    for deployment in application.deployments:
        if isinstance(deployment.user_config, dict):
            DetectorSettings.model_validate(deployment.user_config)
    if settings.api_keys_file:
        auth.read(ROOT / settings.api_keys_file)
    return loader.pin(settings.weights, settings).uri


@contextmanager
def reported(path: Path, difference: str) -> Iterator[None]:
    """Raises CommandFailed for what is wrong with a configuration that the block reads."""
    try:
        yield
    except OSError as error:
        raise CommandFailed(f"cannot read {error.filename or path}: {error.strerror or error}") from error
    except (WeightsError, ValueError, yaml.YAMLError) as error:
        laid_over = " with SERVE_CONFIG_DIFFERENCE" if difference else ""
        raise CommandFailed(f"{path}{laid_over}: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """What an error says, in one line. Of pydantic's, which have several, each with the place in the configuration."""
    text = str(error)
    if isinstance(error, ValidationError):
        text = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'all of it'}: {one['msg']}" for one in error.errors())
    return " ".join(text.split())


def failure(application: str, messages: list[str]) -> str:
    """Why an application failed, in one line, of what Serve says: without tracebacks, which its log files have."""
    gist = []
    for message in filter(None, messages):
        begin, *trace = re.split(r"Error: \S*ray::|Traceback \(most recent call last\)", message)
        gist.append(" ".join([*begin.split(), message.strip().splitlines()[-1].strip() if trace else ""]).strip())
    return f"the application {application} failed: {' '.join(gist)}"


def address(host: str, port: int, path: Path) -> str:
    """The IP address that `host` means, for IPv4 if it has one. It is free at `port`, and may be used.

    Raises CommandFailed if nothing can listen there, for example because the port is in use.
    """
    if not 0 < port < 65536:
        raise CommandFailed(f"http_options.port in {path} is {port}, but ports are 1 to 65535")
    try:
        known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, (found, *_) = min(known, key=lambda one: one[0] != socket.AF_INET)
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((found, port))
    except (OSError, UnicodeError) as error:  # UnicodeError: a text that cannot be a host's name
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            fix = f"stop it, or change http_options.port in {path}"
            raise CommandFailed(f"port {port} is in use, perhaps by this service: {fix}") from error
        raise CommandFailed(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from error
    if os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1" and found not in REACHABLE:
        fix = f"set http_options.host in {path} to {', '.join(REACHABLE)}, and let a firewall select the addresses"
        raise CommandFailed(f"cannot serve on {host} alone, because replicas would not answer HAProxy: {fix}")
    return "::0" if found == "::" else str(found)


def url(host: str, port: int) -> str:
    """Where this machine reaches what listens on `host`, an IP address."""
    host = ANY.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def check_haproxy() -> None:
    """Raises CommandFailed when HAProxy could not start, which Ray would report in its log files only."""
    if os.environ["RAY_SERVE_ENABLE_HA_PROXY"] != "1":
        return
    import resource  # does not exist on Windows, which has no HAProxy either

    if not os.access(keeper := os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"], os.X_OK):
        raise CommandFailed(
            f"cannot run {keeper}: install this project where {sys.executable} is, e.g. by `make setup`"
        )
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < OPEN_FILES:
        fix = f"raise it with `ulimit -Hn` or `docker run --ulimit nofile={OPEN_FILES}`"
        raise CommandFailed(f"the limit on open files is {most}, but HAProxy needs {OPEN_FILES}: {fix}")
