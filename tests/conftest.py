"""The real service, once per session, on a free port; and photos that every installation has."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loadtests.service import ROOT, config, free_port, running

SHARED = ROOT.parent / "shared"  # photos and weights that may not be part of this repository; used where present


def pytest_report_header() -> str:
    packages = ("ray", "torch", "ultralytics-opencv-headless", "pillow", "fastapi")
    return ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)


def asset(name: str) -> bytes:
    """`bus.jpg` or `zidane.jpg` of the Ultralytics package."""
    found = importlib.util.find_spec("ultralytics")
    assert found and found.origin
    return (Path(found.origin).parent / "assets" / name).read_bytes()


@pytest.fixture(scope="session")
def bus() -> bytes:
    return asset("bus.jpg")


@pytest.fixture(scope="session")
def zidane() -> bytes:
    return asset("zidane.jpg")


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    with running(config(free_port())) as (url, _):
        yield url


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as http:
        yield http


def shared(*parts: str) -> Path:
    """A file or folder of the shared data; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {'/'.join(parts)} beside this checkout")
    return path
