"""What is checked before anything runs: addresses, ports, HAProxy, and what Serve says when an application failed."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from loadtests.service import free_port
from serve_app.errors import CommandFailed
from serve_app.ops.preflight import address, check_haproxy, failure, url

FILE = Path("config.yaml")


@pytest.fixture(autouse=True)
def haproxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", sys.executable)


@pytest.mark.parametrize(
    ("host", "found", "asked"),
    [
        ("127.0.0.1", "127.0.0.1", "http://127.0.0.1:80"),
        ("localhost", "127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "0.0.0.0", "http://127.0.0.1:80"),
        pytest.param("::", "::0", "http://[::1]:80", marks=pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")),
    ],
)
def test_a_host_is_an_address_that_this_machine_reaches(host: str, found: str, asked: str) -> None:
    assert address(host, free_port(), FILE) == found
    assert url(found, 80) == asked


@pytest.mark.parametrize("host", ["127.0.0.2", "::1"])
def test_without_haproxy_any_address_of_the_machine_will_do(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandFailed, match=r"set http_options.host in config.yaml to 127.0.0.1"):
        address(host, free_port(), FILE)
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    assert address(host, free_port(), FILE) == host


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        pytest.param("203.0.113.7", 9000, "cannot listen on 203.0.113.7:9000: ", id="of another machine"),
        pytest.param("no.such.host.invalid", 9000, "cannot listen on no.such", id="unknown"),
        pytest.param("a..b", 9000, "cannot listen on a..b:9000: ", id="no name at all"),
        pytest.param("127.0.0.1", 0, "ports are 1 to 65535", id="no port"),
        pytest.param("127.0.0.1", 70000, "ports are 1 to 65535", id="a port too high"),
    ],
)
def test_where_nothing_can_listen(host: str, port: int, message: str) -> None:
    with pytest.raises(CommandFailed, match=message) as failed:
        address(host, port, FILE)
    assert "\n" not in str(failed.value)


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(CommandFailed, match=r"is in use, perhaps by"):
        address("127.0.0.1", taken.getsockname()[1], FILE)


def test_haproxy_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(tmp_path / "haproxy-keeper"))
    with pytest.raises(CommandFailed, match=r"cannot run .*haproxy-keeper: install this project"):
        check_haproxy()


def test_a_failure_of_serve_is_one_line_without_its_traceback() -> None:
    trace = "It failed.\nError: \x1b[36mray::Replica.start()\x1b[39m (pid=1)\n  File x\nValueError: too\nTraceback (most recent call last):\n  File y\nValueError: no weights"
    assert (
        failure("a", ["", trace, "3 replicas wait."])
        == "the application a failed: It failed. ValueError: no weights 3 replicas wait."
    )
