"""Images by URL: off by default, and no way into the private network when on."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from serve_app.errors import AppError, MalformedRequest, PayloadTooLarge, SourceUnavailable
from serve_app.http import image_urls
from serve_app.settings import AppSettings

HOST = "photos.test"
ON = AppSettings(image_url_hosts=(HOST,), max_body_bytes=1000)


def fetch(url: str, settings: AppSettings = ON) -> bytes:
    return asyncio.run(image_urls.fetch(url, settings))


def test_off_by_default() -> None:
    with pytest.raises(MalformedRequest, match="switched off"):
        fetch(f"https://{HOST}/a.jpg", AppSettings())


@pytest.mark.parametrize(
    "url",
    [
        f"http://{HOST}/a.jpg",
        "https://other.test/a.jpg",
        f"https://{HOST}:8443/a.jpg",
        f"https://user:password@{HOST}/a.jpg",
        f"https://{HOST}@evil.test/a.jpg",
        f"https://{HOST}.evil.test/a.jpg",
        f"https://{HOST}:99999/a.jpg",
        "https://[::1",
        "https:///a.jpg",
    ],
)
def test_only_plain_https_urls_of_listed_hosts(url: str) -> None:
    with pytest.raises(MalformedRequest, match="https://HOST"):
        fetch(url)


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["192.168.1.1"],
        ["100.64.0.1"],
        ["0.0.0.0"],
        ["::1"],
        ["fe80::1%eth0"],
        ["fd00:ec2::254"],
        ["::ffff:169.254.169.254"],
        ["93.184.215.14", "10.0.0.1"],
    ],
    ids="-".join,
)
def test_names_of_private_addresses_are_refused(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (a, 443)) for a in addresses])
    with pytest.raises(MalformedRequest, match="not a public host"):
        fetch(f"https://{HOST}/a.jpg")


def test_a_name_that_does_not_resolve_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(SourceUnavailable):
        fetch(f"https://{HOST}/a.jpg")


class Photos(BaseHTTPRequestHandler):
    """An https host: `/a.jpg` is there, `/big` is too big, `/away` redirects."""

    hosts: list[str] = []  # noqa: RUF012 - what it was called

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        body = {"/a.jpg": b"photo", "/big": bytes(5000)}.get(self.path)
        self.send_response(302 if body is None else 200)
        self.send_header("Location", "http://169.254.169.254/")
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A real TLS server for HOST on loopback; the check that would refuse loopback is told that it is public."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "host.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Photos)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    async def loopback(_host: str) -> str:
        return "127.0.0.1"

    port = server.server_port
    plain = httpx.URL.copy_with
    monkeypatch.setattr(image_urls, "public_address", loopback)
    monkeypatch.setattr(httpx.URL, "copy_with", lambda self, **kwargs: plain(self, port=port, **kwargs))
    trusting = ssl.create_default_context(cafile=str(pem))
    original = httpx.AsyncClient.__init__
    monkeypatch.setattr(httpx.AsyncClient, "__init__", lambda self, **kwargs: original(self, verify=trusting, **kwargs))
    Photos.hosts = []
    yield port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("host")
def test_the_pinned_address_is_asked_in_the_hosts_name() -> None:
    assert fetch(f"https://{HOST}/a.jpg") == b"photo"
    assert Photos.hosts == [HOST]


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(("path", "error"), [("big", PayloadTooLarge), ("away", SourceUnavailable)])
def test_size_and_redirects_are_limited(path: str, error: type[AppError]) -> None:
    with pytest.raises(error):
        fetch(f"https://{HOST}/{path}")
    assert Photos.hosts == [HOST], "the redirect was not followed"


@pytest.mark.usefixtures("host")
def test_a_certificate_of_another_name_is_refused() -> None:
    with pytest.raises(SourceUnavailable, match="ConnectError"):
        fetch("https://other.test/a.jpg", AppSettings(image_url_hosts=("other.test",)))
