"""An S3 that keeps versions, on loopback: moto's server, started and stopped here. Its log tells every request."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from loadtests.service import free_port

BUCKET = "weights"
# Credentials that any S3 but moto's refuses; a proxy in the environment is not for loopback.
ENV = {
    "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "eu-central-1",
    "NO_PROXY": "127.0.0.1",
}  # fmt: skip


class Bucket(NamedTuple):
    """Where the store answers, a client of it, and the file with one line for each request."""

    endpoint: str
    client: Any
    log: Path

    def requests(self, method: str, key: str) -> list[str]:
        """The log's lines of one kind of request for one object."""
        return [line for line in self.log.read_text().splitlines() if f"{method} /{BUCKET}/{key}" in line]


@contextmanager
def bucket(versioning: bool = True) -> Iterator[Bucket]:
    """A fresh store with one empty bucket, `weights`. Our environment, and so a service started now, has its keys."""
    import boto3  # noqa: TID251 - the service's own client is in store.py; this is the other side

    before = dict(os.environ)
    os.environ.update(ENV)
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "requests.log"
        with log.open("w") as file:
            server = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            for _ in range(300):
                try:
                    httpx.get(f"{endpoint}/moto-api/", trust_env=False)
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            client = boto3.client("s3", endpoint_url=endpoint)
            client.create_bucket(
                Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": ENV["AWS_DEFAULT_REGION"]}
            )
            if versioning:
                client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
            yield Bucket(endpoint, client, log)
        finally:
            os.environ.clear()
            os.environ.update(before)
            server.terminate()
            server.wait(10)
