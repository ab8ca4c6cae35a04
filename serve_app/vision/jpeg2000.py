"""Opens a JPEG 2000 after reading all of its headers, because a file of 100 bytes can make OpenJPEG fill 6 GB.

The decoder gets a file of only the parts that were read here, so it reads nothing that was not checked.
"""

from __future__ import annotations

import io
import struct

from PIL import Image

from serve_app.errors import ImageTooComplex
from serve_app.vision.jpeg2000_codestream import COMPONENTS, read_codestream

CODESTREAM, BOXES = b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"  # how a .j2k and a .jp2 begin
BYTES_A_PIXEL = 14  # as for other formats, see `max_image_pixels`
SMALLEST_LIMIT = 256_000_000  # bytes, for every picture where the limit of pixels is lower
KEPT_BOXES = (b"ihdr", b"bpcc", b"colr", b"pclr", b"cmap", b"cdef")  # of the header; Pillow is slow on others
MOST_BOXES = 1_000


def accepts(data: bytes) -> bool:
    """Whether it begins like a JPEG 2000."""
    return data.startswith((CODESTREAM, BOXES))


def opened(data: bytes, max_pixels: int) -> Image.Image:
    """The image, not decoded yet, with `bits` and `alpha` in its `info`.

    Raises ImageTooLarge when decoding could take more memory than `max_pixels` of another format, UnsupportedFormat for
    more than 4 components, and ValueError for what is damaged or cut off.
    """
    boxes = read_boxes(data) if data.startswith(BOXES) else {b"jp2c": data}
    if b"jp2c" not in boxes:
        raise ValueError("it has no codestream")
    try:
        stream, size = read_codestream(boxes[b"jp2c"], max(BYTES_A_PIXEL * max_pixels, SMALLEST_LIMIT))
    except (struct.error, IndexError) as error:
        raise ValueError("its header is cut off") from error
    alpha = True  # a codestream alone does not say what its last component is
    if b"jp2h" in boxes:
        inner = read_boxes(boxes[b"jp2h"])
        alpha = has_alpha(inner.get(b"cdef", b""))
        header = b"".join(box(kind, inner[kind]) for kind in KEPT_BOXES if kind in inner)
        stream = BOXES + box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + box(b"jp2h", header) + box(b"jp2c", stream)
    image = Image.open(io.BytesIO(stream), formats=("JPEG2000",))
    if image.size != (size.width, size.height):
        raise ValueError("its two headers differ in size")
    image.info |= {"bits": size.bits, "alpha": alpha}
    return image


def as_meant(image: Image.Image) -> Image.Image:
    """The decoded image with white at 255, and without a component that is not alpha.

    Pillow only shifts levels of fewer than 8 bits: white of 1 bit is 128.
    """
    if image.mode in ("LA", "RGBA") and not image.info["alpha"]:
        image = image.convert("L" if image.mode == "LA" else "RGB")
    bits = (image.info["bits"] * COMPONENTS)[: len(image.getbands())]
    if min(bits) >= 8 or image.mode not in ("L", "LA", "RGB", "RGBA"):
        return image
    tops = [(1 << min(b, 8)) - 1 << 8 - min(b, 8) for b in bits]
    return image.point([min(round(level * 255 / top), 255) for top in tops for level in range(256)])


def has_alpha(cdef: bytes) -> bool:
    """Whether the definition of the components calls one of them opacity."""
    return any(kind in (1, 2) for _, kind, _ in struct.iter_unpack(">HHH", cdef[2 : 2 + (len(cdef) - 2) // 6 * 6]))


def box(kind: bytes, content: bytes) -> bytes:
    """A box of a JP2 file."""
    return struct.pack(">I4s", 8 + len(content), kind) + content


def read_boxes(data: bytes) -> dict[bytes, bytes]:
    """The content of the first box of each kind in a JP2 file, to its codestream.

    Raises ValueError when one is cut off, ImageTooComplex when there are too many.
    """
    boxes: dict[bytes, bytes] = {}
    at = 0
    for _ in range(MOST_BOXES):
        if at + 8 > len(data) or b"jp2c" in boxes:
            return boxes
        length, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if length == 1:
            length, start = int.from_bytes(data[start : start + 8]), start + 8
        end = at + length if length else len(data)
        if not start <= end or (end > len(data) and kind != b"jp2c"):  # a codestream says itself where it ends
            raise ValueError("a box is cut off")
        boxes.setdefault(kind, data[start:end])
        at = end
    raise ImageTooComplex(f"the JPEG 2000 has more than {MOST_BOXES} boxes")
