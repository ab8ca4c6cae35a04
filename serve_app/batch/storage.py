"""Files by their address: a path, or `s3://bucket/key`.

A write is atomic: a file is there as a whole or not at all, and writing it again replaces it.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from serve_app.batch.s3 import S3, check_size, split
from serve_app.errors import CommandFailed, SourceUnavailable
from serve_app.weights.address import SCHEME

logger = logging.getLogger("ray.serve")
# What is wrong with one file. Any other error is the disk's, and stops the run.
OF_ONE_FILE = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO,
    errno.EINVAL,
}  # fmt: skip


class Storage:
    """Reads, writes and lists files. Cheap to make; processes share nothing."""

    def __init__(self, endpoint_url: str | None = None) -> None:
        self._s3 = S3(endpoint_url)

    def read(self, address: str, most: int | None = None) -> bytes:
        """The content of a file with at most `most` bytes.

        Raises SourceUnavailable or PayloadTooLarge, which concern this file only, and StoreFailed or OSError.
        """
        if address.startswith(SCHEME):
            return self._s3.read(address, most)
        try:
            found = Path(address).stat()
            if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for its other end
                raise SourceUnavailable("the file cannot be read: it is not a regular file")
            check_size(found.st_size, most)
            return Path(address).read_bytes()
        except ValueError as error:
            raise SourceUnavailable(f"the file cannot be read: {error}") from error
        except OSError as error:
            if error.errno in OF_ONE_FILE:
                raise SourceUnavailable(f"the file cannot be read: {error.strerror}") from error
            raise

    def write(self, address: str, content: bytes) -> None:
        """Writes a file, and the folders above it. Raises StoreFailed or OSError."""
        if address.startswith(SCHEME):
            self._s3.write(address, content)
            return
        path = Path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid4().hex}")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def exists(self, address: str) -> bool:
        """Whether there is such a file. Raises StoreFailed or OSError."""
        base, _, name = address.rpartition("/")
        return name in self.names(base, deep=False)

    def names(self, base: str, *, deep: bool = True) -> Iterator[str]:
        """Paths, relative to a folder, of all files below it; with `deep` false, of those in it.

        Raises StoreFailed or OSError.
        """
        if base.startswith(SCHEME):
            yield from self._s3.names(base, deep)
        elif Path(base).exists():
            yield from files_below(base, deep)


def files_below(base: str, deep: bool) -> Iterator[str]:
    """Paths, relative to a folder, of its files. Follows links to folders, into each folder once. Raises OSError."""

    def fail(error: OSError) -> None:
        if error.errno not in OF_ONE_FILE:
            raise error
        logger.warning("left out, because it cannot be read: %s: %s", error.filename, error.strerror)

    known = {os.path.realpath(base)}
    for folder, folders, files in os.walk(base, followlinks=True, onerror=fail):
        below, folders[:] = sorted(folders, key=lambda name: (Path(folder, name).is_symlink(), name)), []
        for name in below if deep else ():  # a link comes after the folder that it may lead to
            if (real := os.path.realpath(f"{folder}/{name}")) not in known:
                known.add(real)
                folders.append(name)
        inside = os.path.relpath(folder, base)
        yield from (name if inside == "." else f"{inside}/{name}" for name in files)


def absolute(address: str) -> str:
    """An address that means the same in every folder, without a slash at its end. Raises CommandFailed."""
    if address.startswith(SCHEME):
        return f"{SCHEME}{'/'.join(split(address))}".rstrip("/")
    if "://" in address or not address:
        raise CommandFailed(f"{address!r}: only paths and s3://bucket/prefix are known")
    return os.path.normpath(Path.cwd() / address)
