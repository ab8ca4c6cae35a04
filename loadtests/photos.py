"""Photos that every installation has: the assets of the Ultralytics package, found without importing it."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path


@cache
def asset(name: str) -> bytes:
    """A JPEG of the package's `assets` folder."""
    found = importlib.util.find_spec("ultralytics")
    assert found
    assert found.origin
    return (Path(found.origin).parent / "assets" / name).read_bytes()


def bus() -> bytes:
    """810 x 1080: one bus, at least three persons."""
    return asset("bus.jpg")


def zidane() -> bytes:
    """1280 x 720: two persons."""
    return asset("zidane.jpg")
