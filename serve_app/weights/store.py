"""Weights in S3: pins them by VersionId and sha256, downloads them in ranges, publishes them with their manifest.

The metadata of an object holds the sha256 of its bytes and of its manifest, `KEY.manifests/SHA256.json`, so a VersionId
pins both. This is the only module that imports boto3. The SDK finds credentials and region in its usual places.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from serve_app.errors import (
    DamagedWeights,
    DeniedWeights,
    MissingWeights,
    UnreachableStore,
    UnwritableCache,
    WeightsError,
)
from serve_app.weights.address import SCHEME, Address
from serve_app.weights.identity import Manifest, Pinned, sha256_of

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

logger = logging.getLogger("ray.serve")
RANGE_BYTES = 8_388_608  # size of one request, and so the most that a broken connection can lose
RANGE_S = 120.0  # longest time for one of them, 70 kB/s: a connection may stay slow when the store has recovered
CHUNK_BYTES = 16_384
TRIES = 5  # broken or slow connections in one download before it fails; the SDK's own retries come on top
KEPT_FILES = 5  # files in the cache: the live weights, the previous ones, and some to go back to
DENIED = {"403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}


@dataclass(frozen=True, slots=True)
class Version:
    """One line of `weights list`. `uri` is pinned, `bytes` is the size."""

    uri: str
    modified: datetime
    bytes: int
    latest: bool


class Store:
    """S3, or an S3-compatible store at `endpoint_url`. All methods raise WeightsErrors."""

    def __init__(self, endpoint_url: str | None = None) -> None:
        import boto3  # takes 0.3 s, so only where S3 is used
        from botocore.config import Config

        retries: Any = {"mode": "standard", "max_attempts": 4}
        self._s3 = boto3.client(
            "s3", endpoint_url=endpoint_url, config=Config(retries=retries, connect_timeout=5, read_timeout=30)
        )

    def pin(self, uri: str) -> Pinned:
        """Resolves an address to a version and its manifest. An address without a version means the latest version."""
        at = Address.parse(uri)
        with translate_sdk_errors(uri):
            head = self._s3.head_object(Bucket=at.bucket, Key=at.key, **version_of(at))
        version, meta = head.get("VersionId"), head["Metadata"]
        if not version or version == "null":
            raise MissingWeights(f"{uri}: versioning is not enabled on the bucket, so nothing in it can be pinned")
        if "sha256" not in meta or "manifest" not in meta:
            raise MissingWeights(f"{uri} has no manifest: publish it with `python -m serve_app weights publish`")
        if at.sha256 and at.sha256 != meta["sha256"]:
            raise DamagedWeights(f"{uri}: that version has sha256 {meta['sha256']}")
        where = f"{SCHEME}{at.bucket}/{at.manifest_key(meta['manifest'])}"
        with translate_sdk_errors(where):
            text = self._s3.get_object(Bucket=at.bucket, Key=at.manifest_key(meta["manifest"]))["Body"].read()
        if hashlib.sha256(text).hexdigest() != meta["manifest"]:
            raise DamagedWeights(f"{where} is not the manifest that was published: the sha256 differs")
        try:
            manifest = Manifest.model_validate_json(text)
        except ValidationError as error:
            raise DamagedWeights(f"{where} is not a valid weights manifest: {error}") from error
        if (manifest.sha256, manifest.bytes) != (meta["sha256"], head["ContentLength"]):
            raise DamagedWeights(
                f"{uri} has {head['ContentLength']} bytes and sha256 {meta['sha256']}, "
                f"but its manifest says {manifest.bytes} bytes and {manifest.sha256}"
            )
        if not at.version:
            logger.info("%s is %s", uri, at.pinned(version, manifest.sha256))
        return Pinned(at.pinned(version, manifest.sha256), Path(at.key).stem, manifest.sha256, version, manifest)

    def fetch(self, pinned: Pinned, cache: Path) -> Path:
        """The path of the pinned file in `cache`, downloaded if it is not there yet.

        A download resumes an earlier one. The file gets its final name only after its sha256 is verified.
        """
        target, partial = cache / f"{pinned.sha256}.pt", cache / f"{pinned.sha256}.pt.part"
        if target.exists() and sha256_of(target) == pinned.sha256:
            return target
        assert pinned.manifest
        try:
            cache.mkdir(parents=True, exist_ok=True)
            self._download(Address.parse(pinned.uri), pinned.manifest.bytes, partial)
        except OSError as error:
            raise UnwritableCache(f"{pinned.uri} cannot be kept in {cache}: {error.strerror or error}") from error
        if (found := sha256_of(partial)) != pinned.sha256:
            partial.unlink()
            raise DamagedWeights(f"{pinned.uri}: the download has sha256 {found} and was deleted")
        partial.replace(target)
        for old in sorted(cache.glob("*.pt"), key=lambda p: p.stat().st_mtime)[:-KEPT_FILES]:
            old.unlink()
        return target

    def _download(self, at: Address, total: int, partial: Path) -> None:
        """Appends the missing bytes to `partial`, range by range. After a broken connection it resumes there."""
        from botocore.exceptions import BotoCoreError, ReadTimeoutError

        tries = 0
        with partial.open("ab") as file:
            while (have := file.tell()) < total:
                began, wanted = time.monotonic(), f"bytes={have}-{min(have + RANGE_BYTES, total) - 1}"
                try:
                    with translate_sdk_errors(at.pinned(at.version or "", at.sha256 or "")):
                        answer = self._s3.get_object(Bucket=at.bucket, Key=at.key, Range=wanted, **version_of(at))
                    for chunk in answer["Body"].iter_chunks(CHUNK_BYTES):
                        file.write(chunk)
                        if time.monotonic() - began > RANGE_S:
                            raise ReadTimeoutError(
                                endpoint_url=f"{at.bucket}, slower than {RANGE_BYTES} B in {RANGE_S:g} s"
                            )
                except BotoCoreError as error:  # while the body streams; the SDK only retries until the body starts
                    tries += 1
                    if tries == TRIES:
                        raise UnreachableStore(f"the download failed {TRIES} times, last error: {error}") from error
                    logger.warning(
                        "download of s3://%s/%s failed at %d bytes: %s", at.bucket, at.key, file.tell(), error
                    )

    def publish(self, path: Path, manifest: Manifest, uri: str) -> Pinned:
        """Uploads the manifest, then the weights as a new version. The caller has checked the weights."""
        at = Address.parse(uri)
        text = manifest.model_dump_json(exclude_none=True).encode()
        meta = {"sha256": manifest.sha256, "manifest": hashlib.sha256(text).hexdigest()}
        with translate_sdk_errors(uri), path.open("rb") as file:
            self._s3.put_object(Bucket=at.bucket, Key=at.manifest_key(meta["manifest"]), Body=text)
            answer = self._s3.put_object(Bucket=at.bucket, Key=at.key, Body=file, Metadata=meta)
        if not answer.get("VersionId"):
            raise MissingWeights(f"{uri}: versioning is not enabled on the bucket; enable it, then publish again")
        return self.pin(at.pinned(answer["VersionId"], manifest.sha256))

    def versions(self, uri: str) -> list[Version]:
        """All versions of one object with their pinned addresses, newest first."""
        at = Address.parse(uri)
        with translate_sdk_errors(uri):
            pages = self._s3.get_paginator("list_object_versions").paginate(Bucket=at.bucket, Prefix=at.key)
            rows = [row for page in pages for row in page.get("Versions", []) if row["Key"] == at.key]
        if not rows:
            raise MissingWeights(f"{uri}: no such object")
        found = []
        for row in rows:
            with translate_sdk_errors(uri):
                head = self._s3.head_object(Bucket=at.bucket, Key=at.key, VersionId=row["VersionId"])
            sha256 = head["Metadata"].get("sha256", "unknown: not published by `weights publish`")
            found.append(
                Version(at.pinned(row["VersionId"], sha256), row["LastModified"], row["Size"], row["IsLatest"])
            )
        return found


def version_of(at: Address) -> dict[str, str]:
    """boto3's arguments for the version of an address; empty for the latest version."""
    return {"VersionId": at.version} if at.version else {}


@contextmanager
def translate_sdk_errors(what: str) -> Iterator[None]:
    """Raises the SDK's errors as WeightsErrors. `what` begins their message."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except ClientError as error:
        raise refusal(what, error) from error
    except NoCredentialsError as error:
        raise DeniedWeights(f"{what}: no AWS credentials were found") from error
    except BotoCoreError as error:
        raise UnreachableStore(f"{what}: {error}") from error


def refusal(what: str, error: ClientError) -> WeightsError:
    """The WeightsError for an error response of the store."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in DENIED or status == 403:
        return DeniedWeights(f"{what}: access denied; the role needs s3:GetObjectVersion and s3:GetObject on it")
    if status >= 500:
        return UnreachableStore(f"{what}: the store answered {status} {code}")
    # S3 answers 400 for a malformed version.
    return MissingWeights(f"{what}: no such bucket, object or version ({status} {code})")
