"""Weights in S3: pinned by VersionId and sha256, downloaded in ranges, published with their manifest.

An object's own metadata names the sha256 of its bytes and of its manifest, `KEY.manifests/SHA256.json`, so a VersionId
pins both. The only module that imports boto3. Credentials and region come from where the SDK finds them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from pydantic import ValidationError

from serve_app.errors import DamagedWeights, DeniedWeights, MissingWeights, UnreachableStore, WeightsError
from serve_app.weights import Manifest, Pinned, sha256_of

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

logger = logging.getLogger("ray.serve")
SCHEME = "s3://"
RANGE_BYTES = 8_388_608  # one request; a connection that breaks costs at most this
TRIES = 5  # for one range, besides the SDK's own retries of its requests
KEPT_FILES = 5  # in the cache: the live weights, those before, and some to go back to
DENIED = {"403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}


@dataclass(frozen=True, slots=True)
class Address:
    """`s3://bucket/key`, optionally `?versionId=…&sha256=…`."""

    bucket: str
    key: str
    version: str | None
    sha256: str | None

    @classmethod
    def parse(cls, uri: str) -> Address:
        """Raises MissingWeights when the text is no such address."""
        parts = urlsplit(uri)
        query = parse_qs(parts.query, keep_blank_values=True)
        key = parts.path.removeprefix("/")
        unknown = query.keys() - {"versionId", "sha256"}
        if (
            not parts.netloc
            or not key.endswith(".pt")
            or unknown
            or any(len(v) > 1 or not v[0] for v in query.values())
        ):
            raise MissingWeights(f"{uri} is not of the form s3://bucket/key.pt?versionId=…&sha256=…")
        return cls(parts.netloc, key, *(query.get(k, [None])[0] for k in ("versionId", "sha256")))

    def manifest_key(self, sha256: str) -> str:
        """Where the manifest with this hash lies."""
        return f"{self.key}.manifests/{sha256}.json"

    def pinned(self, version: str, sha256: str) -> str:
        """The address that always means the same bytes."""
        return f"{SCHEME}{self.bucket}/{self.key}?versionId={version}&sha256={sha256}"


@dataclass(frozen=True, slots=True)
class Version:
    """One line of `weights list`."""

    uri: str
    modified: datetime
    bytes: int
    latest: bool


class Store:
    """S3, or what speaks its API at `endpoint_url`. All methods raise WeightsErrors."""

    def __init__(self, endpoint_url: str | None = None) -> None:
        import boto3  # 0.3 s, for those only who use S3
        from botocore.config import Config

        retries: Any = {"mode": "standard", "max_attempts": 4}
        self._s3 = boto3.client(
            "s3", endpoint_url=endpoint_url, config=Config(retries=retries, connect_timeout=5, read_timeout=30)
        )

    def pin(self, uri: str) -> Pinned:
        """Resolves an address, once, to a version and its manifest. An address without a version means the latest."""
        at = Address.parse(uri)
        with told(uri):
            head = self._s3.head_object(Bucket=at.bucket, Key=at.key, **version_of(at))
        version, meta = head.get("VersionId"), head["Metadata"]
        if not version or version == "null":
            raise MissingWeights(f"{uri}: the bucket keeps no versions, so nothing in it can be pinned")
        if "sha256" not in meta or "manifest" not in meta:
            raise MissingWeights(f"{uri} has no manifest: publish it with `python -m serve_app weights publish`")
        if at.sha256 and at.sha256 != meta["sha256"]:
            raise DamagedWeights(f"{uri}: that version has sha256 {meta['sha256']}")
        where = f"{SCHEME}{at.bucket}/{at.manifest_key(meta['manifest'])}"
        with told(where):
            text = self._s3.get_object(Bucket=at.bucket, Key=at.manifest_key(meta["manifest"]))["Body"].read()
        if hashlib.sha256(text).hexdigest() != meta["manifest"]:
            raise DamagedWeights(f"{where} is not the manifest that was published: the sha256 differs")
        try:
            manifest = Manifest.model_validate_json(text)
        except ValidationError as error:
            raise DamagedWeights(f"{where} is not a manifest of weights: {error}") from error
        if (manifest.sha256, manifest.bytes) != (meta["sha256"], head["ContentLength"]):
            raise DamagedWeights(f"{uri} has {head['ContentLength']} bytes, its manifest tells of {manifest.bytes}")
        if not at.version:
            logger.info("%s is %s", uri, at.pinned(version, manifest.sha256))
        return Pinned(at.pinned(version, manifest.sha256), Path(at.key).stem, manifest.sha256, version, manifest)

    def fetch(self, pinned: Pinned, cache: Path) -> Path:
        """The file, from the cache or downloaded into it: resumed, verified, and named last."""
        target, partial = cache / f"{pinned.sha256}.pt", cache / f"{pinned.sha256}.pt.part"
        if target.exists() and sha256_of(target) == pinned.sha256:
            return target
        cache.mkdir(parents=True, exist_ok=True)
        assert pinned.manifest
        self._download(Address.parse(pinned.uri), pinned.manifest.bytes, partial)
        if (found := sha256_of(partial)) != pinned.sha256:
            partial.unlink()
            raise DamagedWeights(f"{pinned.uri} came with sha256 {found}: thrown away")
        partial.replace(target)
        for old in sorted(cache.glob("*.pt"), key=lambda p: p.stat().st_mtime)[:-KEPT_FILES]:
            old.unlink()
        return target

    def _download(self, at: Address, total: int, partial: Path) -> None:
        """Appends what is missing, range by range; a connection that breaks goes on where it stopped."""
        from botocore.exceptions import BotoCoreError

        tries = 0
        with partial.open("ab") as file:
            while (have := file.tell()) < total:
                wanted = f"bytes={have}-{min(have + RANGE_BYTES, total) - 1}"
                try:
                    with told(at.pinned(at.version or "", at.sha256 or "")):
                        answer = self._s3.get_object(Bucket=at.bucket, Key=at.key, Range=wanted, **version_of(at))
                    for chunk in answer["Body"].iter_chunks(1 << 20):
                        file.write(chunk)
                except BotoCoreError as error:  # while the body streams; the SDK only retries what comes before
                    tries += 1
                    if tries == TRIES:
                        raise UnreachableStore(f"the download broke {TRIES} times, last: {error}") from error
                    logger.warning(
                        "download of s3://%s/%s broke at %d bytes: %s", at.bucket, at.key, file.tell(), error
                    )

    def publish(self, path: Path, manifest: Manifest, uri: str) -> Pinned:
        """Uploads the manifest, then the weights as a new version. What is in them was checked by the caller."""
        at = Address.parse(uri)
        text = manifest.model_dump_json().encode()
        meta = {"sha256": manifest.sha256, "manifest": hashlib.sha256(text).hexdigest()}
        with told(uri), path.open("rb") as file:
            self._s3.put_object(Bucket=at.bucket, Key=at.manifest_key(meta["manifest"]), Body=text)
            answer = self._s3.put_object(Bucket=at.bucket, Key=at.key, Body=file, Metadata=meta)
        if not answer.get("VersionId"):
            raise MissingWeights(f"{uri}: the bucket keeps no versions; switch versioning on, then publish again")
        return self.pin(at.pinned(answer["VersionId"], manifest.sha256))

    def versions(self, uri: str) -> list[Version]:
        """All versions of one object, newest first, as they may be pinned."""
        at = Address.parse(uri)
        with told(uri):
            pages = self._s3.get_paginator("list_object_versions").paginate(Bucket=at.bucket, Prefix=at.key)
            rows = [row for page in pages for row in page.get("Versions", []) if row["Key"] == at.key]
        if not rows:
            raise MissingWeights(f"{uri}: no such object")
        found = []
        for row in rows:
            with told(uri):
                head = self._s3.head_object(Bucket=at.bucket, Key=at.key, VersionId=row["VersionId"])
            sha256 = head["Metadata"].get("sha256", "unknown: not published by `weights publish`")
            found.append(
                Version(at.pinned(row["VersionId"], sha256), row["LastModified"], row["Size"], row["IsLatest"])
            )
        return found


def version_of(at: Address) -> dict[str, str]:
    """boto3's argument for a version, none for the latest."""
    return {"VersionId": at.version} if at.version else {}


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turns the SDK's errors into ours."""
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
    """The store's answer as one of our errors."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in DENIED or status == 403:
        return DeniedWeights(f"{what}: access denied; the role needs s3:GetObjectVersion and s3:GetObject there")
    if status >= 500:
        return UnreachableStore(f"{what}: the store answers {status} {code}")
    return MissingWeights(f"{what}: no such bucket, object or version ({status} {code})")  # 400 for a malformed version
