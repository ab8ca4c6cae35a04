"""Optional API keys: who may call, and how many requests at a time. Knows nothing of HTTP but the text of a header.

Each line of the keys file is `name sha256`; `python -m serve_app key NAME` makes a key and its line. Kubernetes mounts
the file from a Secret. A changed file is reloaded without a restart; if it is invalid, the previous keys stay active.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_app.errors import Forbidden, TooManyRequests, Unauthorized

logger = logging.getLogger("ray.serve")


class Keys:
    """The active keys. Raises OSError or ValueError at start if the file cannot be read or is invalid."""

    def __init__(self, path: Path, max_requests: int) -> None:
        self._path, self._max_requests = path, max_requests
        self._version = self._stat()
        self._hashes = read(path)
        self._running: Counter[str] = Counter()

    def identify(self, key: str | None) -> str:
        """Returns the name of the key's owner. Raises Unauthorized without a key, Forbidden for an unknown one."""
        if not key:
            raise Unauthorized("the request has no API key: send `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        self._reload_if_changed()
        given = digest(key)
        # Compares all of them, each in constant time, so that the time reveals nothing about the keys.
        matches = [name for name, known in self._hashes.items() if hmac.compare_digest(given, known)]
        if not matches:
            raise Forbidden("the API key is unknown: check it, or ask the operator for a key")
        return matches[0]

    @contextmanager
    def slot(self, name: str) -> Iterator[None]:
        """Counts one running request of the owner, until the block ends. Raises TooManyRequests at the limit."""
        if self._running[name] >= self._max_requests:
            raise TooManyRequests(
                f"this API key has {self._max_requests} requests running, which is the limit: wait for one to finish"
            )
        self._running[name] += 1
        try:
            yield
        finally:
            self._running[name] -= 1

    def _stat(self) -> tuple[int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_ino  # Kubernetes changes a mounted Secret by swapping a link

    def _reload_if_changed(self) -> None:
        try:
            version = self._stat()
            if version == self._version:
                return
            self._version, self._hashes = version, read(self._path)
            logger.info("API keys reloaded: %d", len(self._hashes))
        except (OSError, ValueError) as error:
            logger.error("API keys not reloaded, the previous ones stay active: %s", error)


def read(path: Path) -> dict[str, str]:
    """Reads the file into hashes by name. Raises OSError, or ValueError that names a bad line but not its content."""
    hashes: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, value = line.strip().partition(" ")
        value = value.strip().lower()
        if len(value) != 64 or not all(c in "0123456789abcdef" for c in value) or name in hashes:
            raise ValueError(f"{path}, line {number}: expected `name sha256`, each name once")
        hashes[name] = value
    if not hashes:
        raise ValueError(f"{path} contains no key")
    return hashes


def digest(key: str) -> str:
    """The SHA-256 of a key, in hex. A key has 256 random bits, so it needs neither a salt nor a slow hash."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A new key: 256 random bits as URL-safe base64."""
    return secrets.token_urlsafe(32)
