"""Drops the texts and the colour profile of a PNG. The pixels do not need them, and Pillow fails on large ones."""

from __future__ import annotations

import struct

SIGNATURE = b"\x89PNG\r\n\x1a\n"
DROPPED = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}  # Pillow inflates them while it opens the file, to 1 MiB at most


def without_texts(data: bytes) -> bytes:
    """The same bytes without these chunks. Any other file stays as it is."""
    if not data.startswith(SIGNATURE):
        return data
    view = memoryview(data)
    kept, at = [view[: len(SIGNATURE)]], len(SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind not in DROPPED:
            kept.append(view[at:end])
        at = end
    return b"".join([*kept, view[at:]])
