"""Checkpoint files with other names in their pickle, and damaged ones."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable, Iterator

from loadtests.drills.fuzz import mutate


def renamed(file: bytes, moved: dict[str, str]) -> bytes:
    """The file with other names for the modules of its classes, in the pickle's own GLOBAL steps."""

    def rename(pickled: bytes) -> bytes:
        for module, other in moved.items():
            pickled = pickled.replace(f"c{module}\n".encode(), f"c{other}\n".encode())
        return pickled

    return _changed(file, rename)


def damaged(file: bytes, times: int) -> Iterator[bytes]:
    """The file with its pickle damaged in so many ways."""
    for seed in range(times):
        yield _changed(file, lambda pickled, seed=seed: mutate(pickled, random.Random(seed)))  # type: ignore[misc]


def _changed(file: bytes, change: Callable[[bytes], bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file)) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, change(data) if info.filename.endswith("data.pkl") else data)
    return made.getvalue()
