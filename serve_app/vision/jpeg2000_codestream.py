"""Reads all headers of a JPEG 2000 codestream, and adds up what decoding it may take.

Markers have the names of ITU-T T.800, annex A.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.errors import ImageTooComplex, ImageTooLarge, UnsupportedFormat

SIZ, COD, COC, SOT, SOD = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93
END = b"\xff\xd9"
KEPT = {0xFF50, SIZ, COD, COC, 0xFF5C, 0xFF5D, 0xFF5E, 0xFF5F, 0xFF60, 0xFF61}  # CAP, QCD, QCC, RGN, POC, PPM, PPT
DROPPED = {0xFF55, 0xFF57, 0xFF58, 0xFF63, 0xFF64}  # TLM, PLM, PLT, CRG, COM: lengths, positions, comments
COMPONENTS = 4
MOST_LEVELS = 32
# Real photos have one to a few segments for each tile, and one coding or two.
MOST_SEGMENTS, MOST_CODINGS = 100_000, 100
# Bytes that OpenJPEG 2.5 was measured to take for each, rounded up. Levels and packets cost more time than memory.
TILE_BYTES, LEVEL_BYTES, PRECINCT_BYTES, BLOCK_BYTES, PACKET_BYTES, CHUNK_BYTES = 16_000, 1_000, 2_500, 400, 4, 24
ENDED_PASSES, ENDED_BYTES = 0b101, 6_000  # the styles whose passes end one by one, up to 164 in a block


@dataclass(frozen=True, slots=True)
class Size:
    """The SIZ marker: pixels of the picture and of a tile, number of tiles, bits of each component."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    tiles: int
    bits: tuple[int, ...]


def read_codestream(data: bytes, most_bytes: int) -> tuple[bytes, Size]:
    """The codestream without what its pixels do not need, and its size.

    Raises ImageTooLarge when decoding could take more than `most_bytes` of memory, ImageTooComplex, UnsupportedFormat,
    and ValueError or struct.error when it is damaged or cut off.
    """
    size = read_size(data)
    header, first = [data[:2]], 0
    tiles: set[int] = set()
    codings: set[tuple[int, bytes]] = set()
    for number, (marker, at, content) in enumerate(segments(data)):
        if number >= MOST_SEGMENTS or len(codings) > MOST_CODINGS:
            raise ImageTooComplex(f"the JPEG 2000 has more than {MOST_SEGMENTS} segments, or {MOST_CODINGS} codings")
        if marker == SOT:
            tiles.add(int.from_bytes(content[:2]))
            first = first or at
        elif marker in (COD, COC):
            codings.add((marker, content))
        if not first and marker in KEPT:
            header.append(data[at : at + 4 + len(content)])
    if len(tiles) != size.tiles:
        raise ValueError("tiles are missing")
    layers = max((int.from_bytes(content[2:4]) for marker, content in codings if marker == COD), default=1)
    if any(memory(marker, content, size, layers) > most_bytes for marker, content in codings):
        raise ImageTooLarge("the JPEG 2000 would take more memory than a picture of the largest size may")
    return b"".join([*header, data[first:].removesuffix(END[:1]), END]), size


def segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Marker, start and content of each segment of the main header and of the tile-parts' headers.

    The end marker may be missing. Raises ValueError or struct.error when anything else is.
    """
    at, end, between = 2, 0, False  # `end` is that of a tile-part, `between` whether its data has passed
    while data[at : at + 2] not in (END, END[:1], b""):
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == SOD and end:
            if not at + 2 <= end <= len(data):
                raise ValueError("a tile is cut off")
            at, between = end, True
            continue
        content = data[at + 4 : at + 2 + length]
        if marker == SOT and (between or not end):
            (length_of_part,) = struct.unpack_from(">I", content, 2)
            if not length_of_part and not data.endswith(END):
                raise ValueError("its last tile is cut off")
            end, between = at + length_of_part if length_of_part else len(data), False
        elif between or marker not in KEPT | DROPPED:
            raise ValueError(f"its header has the marker {marker:04X}, which is unknown or not at its place")
        if len(content) != length - 2:
            raise ValueError("its header is cut off")
        yield marker, at, content
        at += 2 + length


def read_size(data: bytes) -> Size:
    """The first marker of a codestream. Raises ValueError, struct.error or UnsupportedFormat."""
    marker, _, _, x1, y1, x0, y0, tx, ty, tx0, ty0, count = struct.unpack_from(">HHHIIIIIIIIH", data, 2)
    if marker != SIZ or not (tx0 <= x0 < x1 and ty0 <= y0 < y1 and tx0 + tx > x0 and ty0 + ty > y0):
        raise ValueError("its size is damaged")
    if not 1 <= count <= COMPONENTS:
        raise UnsupportedFormat(f"a JPEG 2000 of {count} components: send 1 to {COMPONENTS}")
    components = [*struct.iter_unpack("BBB", data[42 : 42 + 3 * count].ljust(3 * count, b"\0"))]
    if components[0][1:] != (1, 1) or not all(1 <= step <= 4 for c in components for step in c[1:]):
        raise UnsupportedFormat("a JPEG 2000 whose components are much smaller than the picture")
    columns, rows = -(-(x1 - tx0) // tx), -(-(y1 - ty0) // ty)
    bits = tuple((depth & 0x7F) + 1 for depth, _, _ in components)
    return Size(x1 - x0, y1 - y0, min(tx, x1 - x0), min(ty, y1 - y0), columns * rows, bits)


def memory(marker: int, content: bytes, size: Size, layers: int) -> int:
    """Bytes that decoding may take with what a COD or COC marker says, were it said of the whole picture.

    Raises ValueError or IndexError when the marker is damaged.
    """
    style, coded = (content[0], content[5:]) if marker == COD else (content[1], content[2:])
    if len(coded) < 5 or coded[0] > MOST_LEVELS:
        raise ValueError("its coding is damaged")
    levels, block_width, block_height, passes, _, *precincts = coded
    blocks = areas = most_areas = 0
    for level, precinct in enumerate(precincts[: levels + 1] if style & 1 else [0xFF] * (levels + 1)):
        shrunk, band = levels - level, int(level > 0)
        across, down = precinct & 0xF, precinct >> 4
        width, height = -(-size.width >> shrunk), -(-size.height >> shrunk)
        area = ((width >> across) + 2) * ((height >> down) + 2)
        areas, most_areas = areas + area, max(most_areas, area)
        w, h = (max(min(side + 2, most - band), 0) for side, most in ((block_width, across), (block_height, down)))
        blocks += ((width >> w) + 2) * ((height >> h) + 2)
    parts = areas * PRECINCT_BYTES + size.tiles * (levels + 1) * LEVEL_BYTES
    parts += blocks * (BLOCK_BYTES + layers * CHUNK_BYTES + (ENDED_BYTES if passes & ENDED_PASSES else 0))
    parts += (levels + 1) * (most_areas + size.tiles) * layers * PACKET_BYTES
    samples = size.tile_width * size.tile_height * sum(4 + -(-depth // 8) for depth in size.bits)
    return samples + 4 * size.width * size.height + size.tiles * TILE_BYTES + len(size.bits) * parts
