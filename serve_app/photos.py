"""Photos that every installation has: the assets of the Ultralytics package, found without importing it."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path


def folder() -> Path:
    """The package's `assets`."""
    found = importlib.util.find_spec("ultralytics")
    assert found
    assert found.origin
    return Path(found.origin).parent / "assets"


@cache
def asset(name: str) -> bytes:
    """One of its JPEGs."""
    return (folder() / name).read_bytes()


def bus() -> bytes:
    """810 x 1080: one bus, at least three persons."""
    return asset("bus.jpg")


def zidane() -> bytes:
    """1280 x 720: two persons."""
    return asset("zidane.jpg")


def files() -> list[Path]:
    """Both as files."""
    return [folder() / name for name in ("bus.jpg", "zidane.jpg")]
