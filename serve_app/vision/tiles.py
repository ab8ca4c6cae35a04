"""Cuts a photo into square tiles that overlap, so that a network sees small objects as large as they are.

The tiles are those of SAHI (Akyon et al. 2022, arXiv 2202.06934). The whole photo is a network input too, for objects
that are larger than a tile. `tasks/merging.py` merges what was found in them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import InvalidParameter
from serve_app.vision import image
from serve_app.vision.image import Letterbox

STEP = 32  # pixels by which `auto` enlarges a tile until few enough are left


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a photo is to be cut: the side of a tile in pixels, the share that neighbours have in common, the limit."""

    side: int | Literal["auto"]
    overlap: float
    most: int  # tiles of one photo

    def side_of(self, width: int, height: int, size: int) -> int:
        """The side of this photo's tiles in pixels; with `auto` that of the network input, `size`, if that is enough.

        Raises InvalidParameter if there would be too many tiles.
        """
        fits = (side for side in itertools.count(size, STEP) if self.count(width, height, side) <= self.most)
        if self.side == "auto":
            return next(fits)
        if (count := self.count(width, height, self.side)) > self.most:
            raise InvalidParameter(
                f"`tile`: {self.side} pixels cut the image of {width} x {height} pixels into {count} tiles, the limit "
                f"is {self.most}: ask for larger tiles, send fewer images in a request, or ask for `auto`"
            )
        return self.side

    def count(self, width: int, height: int, side: int) -> int:
        """The number of tiles with this side."""
        return len(self._starts(width, side)) * len(self._starts(height, side))

    def places(self, width: int, height: int, side: int) -> Iterator[tuple[int, int, int, int]]:
        """Left, top, right, bottom of each tile, in pixels of the photo; none if one tile holds all of it."""
        if max(width, height) <= side:
            return
        for top, left in itertools.product(self._starts(height, side), self._starts(width, side)):
            yield left, top, min(left + side, width), min(top + side, height)

    def _starts(self, length: int, side: int) -> list[int]:
        """Where tiles begin along one edge of the photo. The last one ends with the photo, so it overlaps more."""
        if length <= side:
            return [0]
        return [*range(0, length - side, side - int(self.overlap * side)), length - side]


def prepare(
    data: bytes, size: int, max_pixels: int, max_frames: int, tiling: Tiling
) -> tuple[list[NDArray[np.uint8]], list[Letterbox], int]:
    """Decodes a photo once. Returns the network inputs, first that of the whole photo, and the side of its tiles.

    A JPEG whose tiles are larger than the network input is decoded at 1/2, 1/4 or 1/8 of its size. The tiles then lie
    on multiples of 2, 4 or 8 pixels. Raises the errors of `image.decode`, and InvalidParameter for too many tiles.
    """
    with image.opened(data, max_pixels, max_frames) as photo:
        side = tiling.side_of(*photo.size, size)
        rgb, (height, width) = image.reduced(photo, size / min(side, max(photo.size)))
    whole, letterbox = image.letterbox(rgb, size, (height, width))
    inputs, letterboxes = [whole], [letterbox]
    n = round(max(width / rgb.shape[1], height / rgb.shape[0]))  # the longer side says it, one of 1 pixel does not
    for left, top, right, bottom in tiling.places(width, height, side):
        piece = rgb[top // n : -(-bottom // n), left // n : -(-right // n)]
        x, y = left // n * n, top // n * n
        shape = min(y + n * piece.shape[0], height) - y, min(x + n * piece.shape[1], width) - x
        network_input, letterbox = image.letterbox(piece, size, shape)
        inputs.append(network_input)
        letterboxes.append(replace(letterbox, tile_x=x, tile_y=y))
    return inputs, letterboxes, side
