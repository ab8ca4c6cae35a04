"""Files by their address: a path, or `s3://bucket/key`.

A write is atomic: a file is there as a whole or not at all, and writing it again replaces it.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from serve_app.errors import CommandFailed, PayloadTooLarge, SourceUnavailable
from serve_app.weights.address import SCHEME

# What is wrong with one file. Any other error is the disk's, and stops the run.
OF_ONE_FILE = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO,
    errno.EINVAL,
}  # fmt: skip
GONE = {403, 404}  # statuses of S3 for one object; a bucket may hide with 403 that an object does not exist
PATIENCE_S = 180.0  # a store that fails for so long stops the run
PAUSE_S = 2.0


class StoreFailed(CommandFailed):
    """The store did not answer for PATIENCE_S, or denies access to all of it."""


class Storage:
    """Reads, writes and lists files. Cheap to make; processes share nothing."""

    def __init__(self, endpoint_url: str | None = None) -> None:
        self._endpoint_url = endpoint_url

    def read(self, address: str, most: int | None = None) -> bytes:
        """The content of a file with at most `most` bytes.

        Raises SourceUnavailable or PayloadTooLarge, which concern this file only, and StoreFailed or OSError.
        """
        if address.startswith(SCHEME):
            return self._get(address, most)
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
            bucket, key = split(address)
            self._call(address, "put_object", Bucket=bucket, Key=key, Body=content)
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
        if not base.startswith(SCHEME):
            for folder, folders, files in os.walk(base):
                folders[:] = folders if deep else []
                inside = os.path.relpath(folder, base)
                yield from (name if inside == "." else f"{inside}/{name}" for name in files)
            return
        bucket, prefix = split(base.rstrip("/") + "/")
        only: dict[str, Any] = {} if deep else {"Delimiter": "/"}
        while True:
            page = self._call(base, "list_objects_v2", Bucket=bucket, Prefix=prefix, **only)
            keys = (one["Key"][len(prefix) :] for one in page.get("Contents", []))
            yield from (key for key in keys if key and not key.endswith("/"))  # consoles make objects for folders
            if not (token := page.get("NextContinuationToken")):
                return
            only["ContinuationToken"] = token

    def _get(self, address: str, most: int | None) -> bytes:
        from botocore.exceptions import BotoCoreError

        bucket, key = split(address)
        for again in patiently():
            answer = self._call(address, "get_object", Bucket=bucket, Key=key)
            check_size(answer["ContentLength"], most)
            try:
                content: bytes = answer["Body"].read()
            except BotoCoreError as error:  # while the body streams
                if not again:
                    raise StoreFailed(f"{address}: {error}") from error
            else:
                return content
        raise AssertionError

    def _call(self, address: str, method: str, **arguments: object) -> Any:  # noqa: ANN401 - boto3 has no types
        from botocore.exceptions import BotoCoreError, ClientError

        for again in patiently():
            try:
                return getattr(client(self._endpoint_url), method)(**arguments)
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                code = error.response["Error"]["Code"]
                if status < 500 and code != "SlowDown":
                    if method == "get_object" and status in GONE and code != "NoSuchBucket":
                        raise SourceUnavailable(f"the store has no such object, or denies access: {code}") from error
                    raise StoreFailed(f"{address}: the store answered {status} {code}") from error
                last: Exception = error
            except BotoCoreError as error:
                last = error
            if not again:
                raise StoreFailed(f"{address}: {last}") from last
        raise AssertionError


@cache
def client(endpoint_url: str | None) -> Any:  # noqa: ANN401 - boto3 has no types
    """One client for a process; threads may share it. It tries once: `patiently` is what tries again."""
    import boto3
    from botocore.config import Config

    config = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=30, max_pool_connections=32)
    return boto3.client("s3", endpoint_url=endpoint_url, config=config)


def patiently() -> Iterator[bool]:
    """One step for each try, until PATIENCE_S have passed, with pauses. Each says whether another may follow."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        yield True
        time.sleep(PAUSE_S)
    yield False


def absolute(address: str) -> str:
    """An address that means the same in every folder, without a slash at its end. Raises CommandFailed."""
    if address.startswith(SCHEME):
        return address.rstrip("/")
    if "://" in address:
        raise CommandFailed(f"{address}: only paths and s3:// are known")
    return os.path.normpath(Path.cwd() / address)


def split(address: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`. Raises CommandFailed."""
    bucket, _, key = address.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise CommandFailed(f"{address} names no bucket: write s3://bucket/prefix")
    return bucket, key


def check_size(size: int, most: int | None) -> None:
    """Raises PayloadTooLarge."""
    if most is not None and size > most:
        raise PayloadTooLarge(f"the file has {size} bytes, the limit is {most}")
