"""Optional API keys: who may call, and how much at a time. Knows nothing of HTTP but the text of a header.

The file holds one `name sha256` a line (of the key; `python -m serve_app key NAME` makes both). Kubernetes mounts it
from a Secret; a changed file is read without a restart, and one that cannot be read leaves the old keys in force.
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
    """The keys in force. Raises OSError or ValueError when there are none to start with."""

    def __init__(self, path: Path, max_requests: int) -> None:
        self._path, self._max_requests = path, max_requests
        self._version = self._stamp()
        self._hashes = read(path)
        self._running: Counter[str] = Counter()

    def identify(self, key: str | None) -> str:
        """The name of the key's owner. Raises Unauthorized without a key, Forbidden for an unknown one."""
        if not key:
            raise Unauthorized("send an API key: `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        self._renew()
        given = digest(key)
        # All are compared, each in constant time, so that the time tells nothing of what is right.
        matches = [name for name, known in self._hashes.items() if hmac.compare_digest(given, known)]
        if not matches:
            raise Forbidden("the API key is not known")
        return matches[0]

    @contextmanager
    def slot(self, name: str) -> Iterator[None]:
        """A place among the owner's requests of the moment. Raises TooManyRequests."""
        if self._running[name] >= self._max_requests:
            raise TooManyRequests(f"{self._max_requests} requests of this key are running already")
        self._running[name] += 1
        try:
            yield
        finally:
            self._running[name] -= 1

    def _stamp(self) -> tuple[int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_ino  # a mounted Secret changes by swapping a link

    def _renew(self) -> None:
        try:
            version = self._stamp()
            if version == self._version:
                return
            self._version, self._hashes = version, read(self._path)
            logger.info("API keys read again: %d", len(self._hashes))
        except (OSError, ValueError) as error:
            logger.error("API keys not read, the old ones stay in force: %s", error)


def read(path: Path) -> dict[str, str]:
    """Hash by name. Raises OSError, or ValueError that names the line (never its content)."""
    hashes: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, value = line.strip().partition(" ")
        value = value.strip().lower()
        if len(value) != 64 or not all(c in "0123456789abcdef" for c in value) or name in hashes:
            raise ValueError(f"{path}, line {number}: not `name sha256`, or the name again")
        hashes[name] = value
    if not hashes:
        raise ValueError(f"{path} holds no key")
    return hashes


def digest(key: str) -> str:
    """What the file holds of a key. A key is 256 random bits, so it needs no salt and no slow hash."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A key nobody can guess."""
    return secrets.token_urlsafe(32)
