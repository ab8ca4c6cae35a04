"""The folder of a service on this machine: Ray's and HAProxy's files, and what other commands must know of it.

ray-…             below TMPDIR, /tmp or /var/tmp; only its user may enter it; removed when the service ends
├── auth_token    what this service's Ray asks of everybody who may run code
├── service.json  its addresses; locked while the service runs, so that a left one is not taken for a service
├── running.yaml  the configuration that it served last
├── haproxy
└── ray           Ray's files, which Ray lets everybody read and write
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from serve_app.errors import CommandFailed

API = "/api/serve/applications/"  # Serve's REST API, of Ray's dashboard
PREFIX, RAY, TOKEN, RECORD, CONFIG = "ray-", "ray", "auth_token", "service.json", "running.yaml"
# Ray's longest path of a socket
BELOW = "/ray-12345678/ray/session_2026-01-31_23-59-59_123456_1234567/sockets/dash_MetricsHead"
SOCKET_PATH = 103 if sys.platform == "darwin" else 107  # bytes
PLAIN = re.compile(r"[A-Za-z0-9/._+-]+")  # HAProxy's configuration takes a space for the end of a path


@dataclass(frozen=True)
class RunningService:
    """A running service, as it describes itself to other commands of its user."""

    url: str
    dashboard: str  # URL of Ray's dashboard, which has Serve's REST API
    token: str  # for the dashboard; empty if it asks for none
    difference: str  # its SERVE_CONFIG_DIFFERENCE
    folder: str

    @property
    def config(self) -> Path:
        """The file with the last configuration that it served, its difference included."""
        return Path(self.folder) / CONFIG

    @property
    def authorization(self) -> dict[str, str]:
        """The header that the dashboard asks for."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def is_at(self, address: str) -> bool:
        """Whether `address` (URL, host:port or port) is its own."""
        return address.rstrip("/") in (self.url, self.url.removeprefix("http://"), self.url.rpartition(":")[2])


def token() -> str:
    """The token that Ray asks for in this process' environment; empty if it asks for none. Raises OSError."""
    if os.environ["RAY_AUTH_MODE"] != "token":
        return ""
    return os.environ.get("RAY_AUTH_TOKEN") or Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text().strip()


def bases() -> list[Path]:
    """Where folders of services may lie, best first."""
    return [Path(base) for base in dict.fromkeys([os.environ.get("TMPDIR") or "/tmp", "/tmp", "/var/tmp"])]  # noqa: S108


def suits(base: Path) -> bool:
    """Whether Ray's sockets and HAProxy's configuration can lie below `base`, an absolute path."""
    return base.is_absolute() and bool(PLAIN.fullmatch(str(base))) and len(f"{base}{BELOW}") <= SOCKET_PATH


def make() -> Path:
    """Makes a folder with a token for Ray. Raises CommandFailed if no base suits or is writable."""
    reasons = []
    for base in bases():
        if not suits(base):
            reasons.append(f"{base} is too long for the path of a socket, or has other characters than {PLAIN.pattern}")
            continue
        try:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
            (folder / TOKEN).write_text(secrets.token_hex(32))
        except OSError as error:
            reasons.append(f"{base}: {error.strerror}")
        else:
            return folder
    raise CommandFailed(f"no folder for Ray's files, set TMPDIR to one: {'; '.join(reasons)}")


def remove(folder: Path) -> None:
    """Removes the folder. Tries for 10 s, because Ray's dashboard may write into it until it ends."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.5)


@contextmanager
def announced(service: RunningService) -> Iterator[None]:
    """Lets other commands find the service until the block ends."""
    with (Path(service.folder) / RECORD).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump(asdict(service), file)
        file.flush()
        yield


def running() -> list[RunningService]:
    """This user's services that run on this machine. Their order is that of their addresses."""
    found = [one for base in bases() for folder in base.glob(f"{PREFIX}*") if (one := read(folder))]
    return sorted(found, key=lambda service: service.url)


def read(folder: Path) -> RunningService | None:
    """The service that announces itself in a folder; None if there is none, or if it is another user's."""
    try:
        if folder.lstat().st_uid != os.getuid():  # it could name an address that is to receive our configuration
            return None
        with (folder / RECORD).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return RunningService(**json.load(file))
    except (OSError, ValueError, TypeError):  # gone since, half written, or of another version
        pass
    return None
