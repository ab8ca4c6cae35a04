"""Two photos that every installation has: the assets of the Ultralytics package.

Finds the package without importing it, because importing it is slow and replaces `PIL.Image.open`.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path


def folder() -> Path:
    """The `assets` folder of the package."""
    found = importlib.util.find_spec("ultralytics")
    assert found
    assert found.origin
    return Path(found.origin).parent / "assets"


@cache
def asset(name: str) -> bytes:
    """The bytes of one JPEG in that folder."""
    return (folder() / name).read_bytes()


def bus() -> bytes:
    """810 x 1080 pixels: one bus, at least three persons."""
    return asset("bus.jpg")


def zidane() -> bytes:
    """1280 x 720 pixels: two persons."""
    return asset("zidane.jpg")


def files() -> list[Path]:
    """The paths of both photos."""
    return [folder() / name for name in ("bus.jpg", "zidane.jpg")]
