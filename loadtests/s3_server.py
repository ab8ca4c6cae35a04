"""An S3 with versioning on loopback: starts and stops moto's server, and reads its request log."""

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
# Only moto accepts these credentials. NO_PROXY: a proxy of the environment must not get loopback requests.
ENV = {
    "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "eu-central-1",
    "NO_PROXY": "127.0.0.1",
}  # fmt: skip


class Bucket(NamedTuple):
    """The URL of the store, a boto3 client, and the log file with one line for each request."""

    endpoint: str
    client: Any
    log: Path

    def requests(self, method: str, key: str) -> list[str]:
        """The log lines of one HTTP method for the objects whose key begins with `key`."""
        return [line for line in self.log.read_text().splitlines() if f"{method} /{BUCKET}/{key}" in line]


@contextmanager
def bucket(versioning: bool = True) -> Iterator[Bucket]:
    """Starts a store with one empty bucket, `weights`, and sets its credentials in this process's environment."""
    import boto3

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
