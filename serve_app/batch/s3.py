"""Objects in S3, read, written and listed with patience: a store that fails for a while does not end a run of hours."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from threading import Lock
from typing import Any

from serve_app.errors import CommandFailed, PayloadTooLarge, SourceUnavailable
from serve_app.weights.address import SCHEME

# Of S3: what concerns one object only (a bucket may deny that an object does not exist), and what may pass.
OF_ONE_OBJECT = {"NoSuchKey", "AccessDenied", "InvalidObjectState", "KeyTooLongError", "InvalidRequest"}
PASSING = {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "Throttling", "ThrottlingException", "TooManyRequests"}
PATIENCE_S = 180.0  # a store that fails for so long stops the run
PAUSE_S = 2.0
CREATING = Lock()  # boto3 makes one client at a time


class StoreFailed(CommandFailed):
    """The store did not answer for PATIENCE_S, or denies access to all of it."""


class S3:
    """S3, or an S3-compatible store at `endpoint_url`. Cheap to make. All methods raise StoreFailed."""

    def __init__(self, endpoint_url: str | None) -> None:
        self._endpoint_url = endpoint_url

    def write(self, address: str, content: bytes) -> None:
        """Writes an object."""
        bucket, key = split(address)
        self._call(address, "put_object", Bucket=bucket, Key=key, Body=content)

    def names(self, base: str, deep: bool) -> Iterator[str]:
        """Keys, relative to a prefix that ends with a slash, of all objects below it, or of those right below it."""
        bucket, prefix = split(base.rstrip("/") + "/")
        only: dict[str, Any] = {} if deep else {"Delimiter": "/"}
        while True:
            page = self._call(base, "list_objects_v2", Bucket=bucket, Prefix=prefix, **only)
            keys = (one["Key"][len(prefix) :] for one in page.get("Contents", []))
            yield from (key for key in keys if key and not key.endswith("/"))  # consoles make objects for folders
            if not (token := page.get("NextContinuationToken")):
                return
            only["ContinuationToken"] = token

    def read(self, address: str, most: int | None) -> bytes:
        """The content of an object. Raises SourceUnavailable or PayloadTooLarge, too, which concern this one only."""
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
        from botocore import exceptions as sdk

        for again in patiently():
            try:
                return getattr(client(self._endpoint_url), method)(**arguments)
            except sdk.ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                code = error.response["Error"]["Code"]
                if status < 500 and status != 429 and code not in PASSING:
                    if method == "get_object" and code in OF_ONE_OBJECT:
                        raise SourceUnavailable(f"the store does not give the object: {code}") from error
                    raise StoreFailed(f"{address}: the store answered {status} {code}") from error
                last: Exception = error
            except sdk.ParamValidationError as error:
                if method == "get_object":
                    raise SourceUnavailable("this is no address of an object") from error
                raise StoreFailed(f"{address}: {error}") from error
            except (
                sdk.HTTPClientError,
                sdk.ConnectionError,
                sdk.CredentialRetrievalError,
                sdk.MetadataRetrievalError,
            ) as error:
                last = error
            except sdk.BotoCoreError as error:  # such as no credentials: that does not pass
                raise StoreFailed(f"{address}: {error}") from error
            if not again:
                raise StoreFailed(f"{address}: {last}") from last
        raise AssertionError


def client(endpoint_url: str | None) -> Any:  # noqa: ANN401 - boto3 has no types
    """One client for a process; threads may share it. It tries once: `patiently` is what tries again."""
    with CREATING:
        return created(endpoint_url)


@cache
def created(endpoint_url: str | None) -> Any:  # noqa: ANN401 - boto3 has no types
    """A new client. Raises StoreFailed if the address of the store is not one."""
    import boto3
    from botocore.config import Config

    config = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=30, max_pool_connections=32)
    try:
        return boto3.client("s3", endpoint_url=endpoint_url, config=config)
    except ValueError as error:
        raise StoreFailed(f"s3_endpoint_url: {error}") from error


def patiently() -> Iterator[bool]:
    """One step for each try, until PATIENCE_S have passed, with pauses. Each says whether another may follow."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        yield True
        time.sleep(PAUSE_S)
    yield False


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
