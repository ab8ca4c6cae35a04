"""Files on disk and in S3: whole or not at all, what concerns one file only, and a store that fails for a while."""

from __future__ import annotations

import http.server
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadtests import s3_server
from serve_app.batch import s3, storage
from serve_app.batch.s3 import StoreFailed
from serve_app.batch.storage import Storage
from serve_app.errors import CommandFailed, PayloadTooLarge, SourceUnavailable
from tests.conftest import http_server


@pytest.fixture(scope="module")
def bucket() -> Iterator[s3_server.Bucket]:
    with s3_server.bucket() as bucket:
        yield bucket


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, bucket: s3_server.Bucket) -> tuple[Storage, str]:
    on_disk = request.param == "disk"
    return Storage(bucket.endpoint), str(tmp_path) if on_disk else f"s3://{s3_server.BUCKET}/{tmp_path.name}"


def test_what_is_written_is_read_and_listed(place: tuple[Storage, str]) -> None:
    files, base = place
    names = ["a.txt", "below/b.txt", "with space & ü.txt"]
    for name in names:
        files.write(f"{base}/{name}", name.encode())
        files.write(f"{base}/{name}", name.encode() * 2)
    assert sorted(files.names(base)) == names
    assert sorted(files.names(base, deep=False)) == ["a.txt", "with space & ü.txt"]
    assert [files.read(f"{base}/{name}") for name in names] == [name.encode() * 2 for name in names]
    assert files.exists(f"{base}/a.txt")
    assert not files.exists(f"{base}/a")
    assert not files.exists(f"{base}/nowhere/a.txt")


def test_a_file_that_is_missing_or_too_large_concerns_only_itself(place: tuple[Storage, str]) -> None:
    files, base = place
    files.write(f"{base}/five", b"12345")
    assert files.read(f"{base}/five", most=5) == b"12345"
    with pytest.raises(PayloadTooLarge, match="5 bytes, the limit is 4"):
        files.read(f"{base}/five", most=4)
    with pytest.raises(SourceUnavailable):
        files.read(f"{base}/six")


@pytest.mark.parametrize("name", ["", "x" * 300, "loop", "nul\0"])
def test_other_things_than_files_concern_only_themselves(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(SourceUnavailable):
        Storage().read(f"{tmp_path}/{name}")


def test_a_pipe_is_no_photo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(SourceUnavailable, match="not a regular file"):
        Storage().read(f"{tmp_path}/pipe.jpg")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Storage().write(f"{tmp_path}/part", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Storage().write(f"{tmp_path}/part", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["part"]
    assert Storage().read(f"{tmp_path}/part") == b"old"


class Failing(http.server.BaseHTTPRequestHandler):
    """A store that fails in different ways before it answers."""

    failures: list[Callable[[Failing], None]]

    def do_GET(self) -> None:
        if self.failures:
            self.failures.pop(0)(self)
        else:
            self.answer(200, b"the photo")

    def do_PUT(self) -> None:
        error(403, "AccessDenied")(self)

    def answer(self, status: int, content: bytes, promised: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(promised or len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def error(status: int, code: str) -> Callable[[Failing], None]:
    return lambda one: one.answer(status, f"<Error><Code>{code}</Code></Error>".encode())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.ENV.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3, "PAUSE_S", 0.01)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(error(503, "SlowDown"), id="throttles"),
        pytest.param(error(500, "InternalError"), id="has an internal error"),
        pytest.param(error(400, "RequestTimeout"), id="has waited too long"),
        pytest.param(error(403, "RequestTimeTooSkewed"), id="has another time"),
        pytest.param(lambda one: one.answer(200, b"the", promised=9), id="breaks off"),
        pytest.param(lambda one: setattr(one, "close_connection", True), id="says nothing"),
    ],
)
def test_a_store_that_fails_for_a_while_is_asked_again(failure: Callable[[Failing], None]) -> None:
    Failing.failures = [failure] * 3
    with http_server(Failing) as endpoint:
        assert Storage(endpoint).read("s3://photos/a.jpg") == b"the photo"
    assert not Failing.failures


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("address", "status", "code"),
    [
        ("s3://photos/a.jpg", 403, "AccessDenied"),
        ("s3://photos/a.jpg", 400, "KeyTooLongError"),
        ("s3://photos/a.jpg", 403, "InvalidObjectState"),
        ("s3://photos/", 200, ""),
        ("s3://My Photos/a.jpg", 200, ""),
    ],
)
def test_an_object_that_cannot_be_had_concerns_only_itself(address: str, status: int, code: str) -> None:
    Failing.failures = [error(status, code)]
    with http_server(Failing) as endpoint, pytest.raises(SourceUnavailable):
        Storage(endpoint).read(address)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("status", "code"), [(403, "InvalidAccessKeyId"), (403, "SignatureDoesNotMatch"), (404, "NoSuchBucket")]
)
def test_a_store_that_knows_nobody_stops_the_run_at_once(status: int, code: str) -> None:
    Failing.failures = [error(status, code)]
    with http_server(Failing) as endpoint, pytest.raises(StoreFailed, match=code):
        Storage(endpoint).read("s3://photos/a.jpg")


def test_an_endpoint_that_is_no_url_is_an_error() -> None:
    with pytest.raises(CommandFailed, match="s3_endpoint_url"):
        Storage("localhost:9000").read("s3://photos/a.jpg")


@pytest.mark.usefixtures("impatient")
def test_a_store_that_goes_on_failing_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PATIENCE_S", 0.2)
    Failing.failures = [error(503, "SlowDown")] * 10_000
    with http_server(Failing) as endpoint, pytest.raises(StoreFailed, match="SlowDown"):
        Storage(endpoint).read("s3://photos/a.jpg")


@pytest.mark.usefixtures("impatient")
def test_a_store_that_denies_a_write_stops_the_run_at_once() -> None:
    with http_server(Failing) as endpoint, pytest.raises(StoreFailed, match="403 AccessDenied"):
        Storage(endpoint).write("s3://photos/part", b"rows")


def test_an_address_without_a_bucket_is_an_error() -> None:
    with pytest.raises(CommandFailed, match="names no bucket"):
        Storage().read("s3:///key")
