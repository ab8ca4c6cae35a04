"""JPEG 2000: every kind gives the right pixels, and files that would cost more than they look are refused."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serve_app import errors
from serve_app.vision import image
from serve_app.vision.jpeg2000 import BOXES, MOST_BOXES, box
from serve_app.vision.jpeg2000_codestream import MOST_CODINGS, MOST_SEGMENTS
from serve_app.vision.sample_photos import bus
from tests.conftest import ROOT
from tests.vision.test_image import LIMIT, encode

PHOTO = Image.open(io.BytesIO(bus())).convert("RGB").resize((200, 150))
RGB, GREY = np.asarray(PHOTO), np.asarray(PHOTO.convert("L"))
OPTIONS: dict[str, dict[str, Any]] = {
    "jp2": {},
    "j2k": {"no_jp2": True},
    "tiles": {"tile_size": (64, 64), "plt": True},
    "tiles from an offset": {"tile_size": (64, 64), "offset": (5, 7)},
    "precincts, small blocks": {"progression": "RPCL", "precinct_size": (64, 64), "codeblock_size": (32, 32)},
    "layers": {"quality_layers": [40, 10, 1], "irreversible": True},
    "one resolution": {"num_resolutions": 1},
}
JP2, J2K = encode(PHOTO, "JPEG2000"), encode(PHOTO, "JPEG2000", no_jp2=True)


def differs(data: bytes, want: NDArray[Any]) -> int:
    """The largest difference from what is right, (H, W) or (H, W, 3)."""
    want = want if want.ndim == 3 else want[:, :, None]
    return int(np.abs(image.decode(data, LIMIT).astype(int) - want).max())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_gives_the_same_picture_as_pillow_and_opencv(options: dict[str, Any]) -> None:
    lossy = 3 * ("irreversible" in options)
    for picture, want in ((PHOTO, RGB), (PHOTO.convert("L"), GREY)):
        data = encode(picture, "JPEG2000", **options)
        assert differs(data, want) <= lossy
        seen = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if seen is not None:  # OpenCV refuses an offset, and grey without a box around it
            assert differs(data, seen) == 0


def with_depth(data: bytes, bits: int, components: int = 1) -> bytes:
    """Says another number of bits, in the codestream and in the box around it."""
    changed = bytearray(data)
    for at in range(components):
        changed[data.index(b"\xff\x51") + 40 + 3 * at] = bits - 1
    if b"ihdr" in data:
        changed[data.index(b"ihdr") + 14] = bits - 1
    return bytes(changed)


@pytest.mark.parametrize("options", [{}, {"no_jp2": True}], ids=["jp2", "j2k"])
@pytest.mark.parametrize("bits", [1, 2, 4, 7, 8, 10, 12, 16])
def test_white_is_white_at_any_depth(bits: int, options: dict[str, Any]) -> None:
    levels = np.linspace(0, (1 << bits) - 1, 64).astype(int)[None].repeat(8, 0)
    stored, kind = (8, np.uint8) if bits <= 8 else (16, np.uint16)
    shifted = (levels - (1 << bits - 1) + (1 << stored - 1)).astype(kind)  # the levels of a file are signed
    data = with_depth(encode(Image.fromarray(shifted), "JPEG2000", **options), bits)
    assert differs(data, levels >> bits - 8 if bits > 8 else np.round(levels * 255 / ((1 << bits) - 1))) == 0
    if bits <= 8:
        coloured = Image.fromarray(shifted[:, :, None].repeat(3, 2))
        data = with_depth(encode(coloured, "JPEG2000", mct=0, **options), bits, 3)
        assert differs(data, np.round(levels * 255 / ((1 << bits) - 1))) == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_component_is_alpha_where_the_file_says_so(mode: str) -> None:
    picture = PHOTO.convert(mode)
    picture.putalpha(0)
    data = encode(picture, "JPEG2000")
    assert (image.decode(data, LIMIT) == 255).all()
    assert (image.decode(encode(picture, "JPEG2000", no_jp2=True), LIMIT) == 255).all()
    assert differs(data.replace(b"cdef", b"cxxx"), RGB if mode == "RGBA" else GREY) == 0


def test_cmyk_and_ycc() -> None:
    assert differs(encode(PHOTO.convert("CMYK"), "JPEG2000"), RGB) == 0
    assert differs(encode(PHOTO.convert("YCbCr"), "JPEG2000"), RGB) <= 4


def test_a_palette_is_looked_up() -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    indexes = np.arange(64).reshape(8, 8) % 3
    data = encode(Image.fromarray(indexes.astype(np.uint8)), "JPEG2000")
    at = data.index(b"jp2h") + 4
    srgb = box(b"colr", struct.pack(">BBBI", 1, 0, 0, 16))
    palette = box(b"pclr", struct.pack(">HB3B", 3, 3, 7, 7, 7) + colours.tobytes())
    mapped = box(b"cmap", b"".join(struct.pack(">HBB", 0, 1, i) for i in range(3)))
    header = box(b"jp2h", data[at : at + 22] + srgb + palette + mapped)
    assert differs(data[: at - 8] + header + data[data.index(b"jp2c") - 4 :], colours[indexes]) == 0


def planes(*pictures: NDArray[np.uint8], steps: tuple[int, int]) -> bytes:
    """A codestream of Y, Cb and Cr, each Cb and Cr for `steps` pixels (across, down)."""
    one, *others = (encode(Image.fromarray(p), "JPEG2000", no_jp2=True, num_resolutions=1) for p in pictures)
    sizes = bytes([7, 1, 1, *(7, *steps) * 2])
    head = one[:4] + struct.pack(">H", 38 + 9) + one[6:40] + struct.pack(">H", 3) + sizes
    body = b"".join(d[d.index(b"\xff\x93") + 2 : -2] for d in (one, *others))
    tile = b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 14 + len(body), 0, 1) + b"\xff\x93"
    return head + one[45 : one.index(b"\xff\x90")] + tile + body + b"\xff\xd9"


@pytest.mark.parametrize("steps", [(1, 1), (2, 1), (2, 2)], ids=["4:4:4", "4:2:2", "4:2:0"])
def test_colours_may_be_smaller_than_the_picture(steps: tuple[int, int]) -> None:
    y, *colours = (np.asarray(PHOTO.convert("YCbCr"))[..., i] for i in range(3))
    small = [np.ascontiguousarray(c[:: steps[1], :: steps[0]]) for c in colours]
    data = planes(np.ascontiguousarray(y), *small, steps=steps)
    if steps == (1, 1):  # without a box around it and of one size, they are RGB
        assert differs(data, np.stack([y, *colours], 2)) == 0
        return
    large = [s.repeat(steps[1], 0).repeat(steps[0], 1) for s in small]
    assert differs(data, np.asarray(Image.fromarray(np.stack([y, *large], 2), "YCbCr").convert("RGB"))) == 0


def claiming(
    side: int = 100,
    *,
    tile: int | None = None,
    components: int = 3,
    block: int = 4,
    precinct: int | None = None,
    layers: int = 1,
    levels: int = 5,
    step: int = 1,
    before: bytes = b"",
    inside: bytes = b"",
) -> bytes:
    """A codestream of about 100 bytes whose header promises any cost; `before` and `inside` stand in its two headers."""
    tile = tile or side
    size = (
        struct.pack(">HIIIIIIIIH", 0, side, side, 0, 0, tile, tile, 0, 0, components)
        + bytes([7, step, step]) * components
    )
    return b"".join([
        b"\xff\x4f\xff\x51", struct.pack(">H", len(size) + 2), size, coding(block, precinct, layers, levels), before,
        b"\xff\x5c", struct.pack(">HB", 3 * levels + 4, 0x40), bytes([64] * (3 * levels + 1)),
        b"\xff\x90", struct.pack(">HHIBB", 10, 0, 30 + len(inside), 0, 1), inside, b"\xff\x93", bytes(16), b"\xff\xd9",
    ])  # fmt: skip


def coding(block: int, precinct: int | None = None, layers: int = 1, levels: int = 5) -> bytes:
    """A COD segment."""
    precincts = b"" if precinct is None else bytes([precinct]) * (levels + 1)
    style = struct.pack(">BBHB5B", precinct is not None, 0, layers, 0, levels, block, block, 0, 1)
    return b"\xff\x52" + struct.pack(">H", len(style + precincts) + 2) + style + precincts


def without_length(data: bytes) -> bytes:
    """The last tile goes to the end of the file, however long that is."""
    at = data.rindex(b"\xff\x90\x00\x0a") + 6
    return data[:at] + bytes(4) + data[at + 4 :]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(claiming(7000), errors.ImageTooLarge, id="49 megapixels in one tile"),
        pytest.param(claiming(60_000), errors.ImageTooLarge, id="3,600 megapixels"),
        pytest.param(claiming(3000, block=0), errors.ImageTooLarge, id="blocks of 4 x 4"),
        pytest.param(claiming(2000, precinct=0x11), errors.ImageTooLarge, id="precincts of 2 x 2"),
        pytest.param(claiming(1000, precinct=0x33, layers=65_535), errors.ImageTooLarge, id="layers"),
        pytest.param(claiming(2000, inside=coding(0, 0x11)), errors.ImageTooLarge, id="precincts of one tile"),
        pytest.param(claiming(2000, before=coding(0, 0x11)), errors.ImageTooLarge, id="a second COD"),
        pytest.param(
            claiming(2000, before=b"\xff\x53\0\x0f\0\x01\x05\0\0\0\x01" + b"\x11" * 6),
            errors.ImageTooLarge,
            id="precincts of one component",
        ),
        pytest.param(
            claiming(before=b"\xff\x64\0\x02" * MOST_SEGMENTS), errors.ImageTooComplex, id="a header of comments"
        ),
        pytest.param(
            claiming(before=b"".join(coding(4, layers=n) for n in range(MOST_CODINGS + 1))),
            errors.ImageTooComplex,
            id="a header of codings",
        ),
        pytest.param(BOXES + box(b"free", b"") * MOST_BOXES + JP2[12:], errors.ImageTooComplex, id="boxes"),
        pytest.param(
            JP2[: JP2.index(b"jp2h") - 4]
            + box(b"jp2h", box(b"free", b"") * MOST_BOXES)
            + JP2[JP2.index(b"jp2c") - 4 :],
            errors.ImageTooComplex,
            id="boxes in the header",
        ),
        pytest.param(claiming(levels=33), errors.CorruptImage, id="33 levels"),
        pytest.param(claiming(before=b"\xff\x52\0\x04\0\0"), errors.CorruptImage, id="half a coding"),
        pytest.param(without_length(J2K)[:-2], errors.CorruptImage, id="a tile that does not say its length, cut off"),
        pytest.param(claiming(components=5), errors.UnsupportedFormat, id="5 components"),
        pytest.param(claiming(components=16_384), errors.UnsupportedFormat, id="16,384 components"),
        pytest.param(claiming(step=255), errors.UnsupportedFormat, id="components of one pixel"),
        pytest.param(claiming(255, tile=1), errors.CorruptImage, id="tiles that are not there"),
        pytest.param(claiming(2**32 - 1, tile=1), errors.CorruptImage, id="2 to the 64th tiles"),
        pytest.param(claiming(before=b"\xff\x74\0\x02"), errors.CorruptImage, id="an unknown marker"),
        pytest.param(JP2[:-3], errors.CorruptImage, id="cut off"),
        pytest.param(J2K[: len(J2K) // 2], errors.CorruptImage, id="half"),
        pytest.param(JP2[:60], errors.CorruptImage, id="cut in the header"),
        pytest.param(JP2[:12], errors.CorruptImage, id="a signature alone"),
        pytest.param(
            JP2[: JP2.index(b"ihdr") + 4] + struct.pack(">II", 8, 8) + JP2[JP2.index(b"ihdr") + 12 :],
            errors.CorruptImage,
            id="another size in the box",
        ),
    ],
)
def test_hostile_and_damaged_files_are_refused_unseen(
    data: bytes, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.Jpeg2KImagePlugin.Jpeg2KImageFile.load", lambda _: pytest.fail("decoded"))
    with pytest.raises(error):
        image.decode(data, 52_000_000)


def test_limits_hold_and_the_end_marker_may_be_missing() -> None:
    for data in (JP2, J2K, JP2[:-2], J2K[:-2], J2K[:-1]):
        assert differs(data, RGB) == 0
        assert image.decode(data, 200 * 150).shape == (150, 200, 3)
        with pytest.raises(errors.ImageTooLarge):
            image.decode(data, 200 * 150 - 1)
    assert differs(without_length(J2K), RGB) == 0
    assert image.decode(claiming(), LIMIT).shape == (100, 100, 3)
    tiles = encode(PHOTO, "JPEG2000", no_jp2=True, tile_size=(64, 64))
    with pytest.raises(errors.CorruptImage, match="tiles are missing"):
        image.decode(tiles[: tiles.rindex(b"\xff\x90\x00\x0a")], LIMIT)


PEAK = """
import resource, sys
from serve_app.vision import image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image.decode(sys.stdin.buffer.read(), 52_000_000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux")
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(claiming(6000), id="one tile"),
        pytest.param(claiming(2400, block=0), id="blocks of 4 x 4"),
        pytest.param(claiming(400, precinct=0x11), id="precincts of 2 x 2"),
        pytest.param(claiming(80, precinct=0x33, layers=5_000), id="layers"),
    ],
)
def test_what_is_just_accepted_takes_no_more_memory_than_another_picture(data: bytes) -> None:
    ended = subprocess.run([sys.executable, "-c", PEAK], input=data, capture_output=True, check=True, cwd=ROOT)
    assert int(ended.stdout) < 14 * 52_000_000
