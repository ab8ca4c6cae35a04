"""Completes a JPEG that lacks nothing but its end marker, which Pillow refuses and every browser shows."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator

from PIL import Image, ImageChops

END = 0xD9
SCAN = 0xDA
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # of these, DHT, JPG and DAC begin no frame
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
COEFFICIENTS = frozenset(range(64))
# The marker of a JPEG segment: 0xFF and a byte that is not a stuffed zero, a fill byte or a restart marker.
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
# Bytes that stand where data may be missing: only zeros, only ones, and a mix. In none of them is a marker.
MIX = random.Random(0).randbytes(1024).replace(b"\xff", b"\xfe")  # noqa: S311 - not cryptography
GUESSES = (bytes(256), b"\xff\0" * 256, MIX)


def segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Kind, content and end of each segment up to the end marker, where it is last.

    Walks the segments instead of searching for markers, because thumbnails and comments may contain such bytes too.
    """
    at = 0
    while marker := MARKER.search(data, at):
        kind, at = marker.group()[1], marker.end()
        length = 0 if kind in (0xD8, 0x01, END) else int.from_bytes(data[at : at + 2])
        yield kind, data[at + 2 : at + length], at + length
        if kind == END:
            return
        at += length


def with_end(data: bytes) -> bytes:
    """The same bytes, with the end marker if that alone is missing. Decodes such a file three times.

    That no data is missing shows in two ways: the scans give all coefficients, and the pixels are the same whatever
    bytes follow. Raises Pillow's errors on a damaged file.
    """
    if data.endswith(b"\xff\xd9"):
        return data
    found = list(segments(data))
    if not found or found[-1][0] == END or not complete(found):
        return data
    body = data.rstrip(b"\xff")  # the first half of the end marker may be there
    scan = max(end for kind, _, end in found if kind == SCAN)
    restarts = RESTART.findall(body, scan)
    restart = bytes((0xFF, 0xD0 + ((restarts[-1][1] + 1) % 8 if restarts else 0)))  # the next, should one be missing
    first, *others = (Image.open(io.BytesIO(body + g + restart + g + b"\xff\xd9"), formats=("JPEG",)) for g in GUESSES)
    same = all(ImageChops.difference(first, other).getbbox() is None for other in others)
    return body + b"\xff\xd9" if same else data


def complete(found: list[tuple[int, bytes, int]]) -> bool:
    """Whether the scans give each component all of its coefficients, to the last bit."""
    frame = next(((kind, content) for kind, content, _ in found if kind in FRAMES), None)
    if frame is None:
        return False
    kind, content = frame
    missing = {component: set(COEFFICIENTS) for component in content[6 : 6 + 3 * content[5] : 3]}
    for scan in (content for segment, content, _ in found if segment == SCAN):
        start, stop, approximation = scan[1 + 2 * scan[0] :][:3]
        for component in scan[1 : 1 + 2 * scan[0] : 2]:
            if kind not in PROGRESSIVE:
                missing[component].clear()
            elif approximation & 0xF == 0:
                missing[component] -= set(range(start, stop + 1))
    return not any(missing.values())
