"""Network inputs for the calibration of int8: parts of photos, always the same ones. Must not know the network."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve_app.vision import image

LEAST, MOST = 64, 256  # inputs; 300 COCO photos were no better than 64 parts of two
MAX_PIXELS = 52_000_000


def images(photos: Sequence[bytes], size: int, *, crops: bool = False) -> list[NDArray[np.uint8]]:
    """LEAST to MOST network inputs uint8 (size, size, 3): parts of encoded photos, some mirrored, darker or brighter.

    Each of the first MOST photos has the same number of parts, or one more. With `crops`, an input is the middle square
    of a part, else the whole part, letterboxed. Raises AppErrors for a photo that cannot be read.
    """
    rng = random.Random(0)  # noqa: S311 - not cryptography
    made = []
    for n in range(min(max(LEAST, len(photos)), MOST)):
        photo = image.decode(photos[n % len(photos)], MAX_PIXELS)  # again for each part: all at a time may be large
        part = rng.uniform(0.3, 1)
        height, width = (max(1, int(side * part)) for side in photo.shape[:2])
        y, x = (rng.randint(0, side - used) for side, used in zip(photo.shape[:2], (height, width), strict=True))
        piece = photo[y : y + height, x : x + width]
        piece = piece[:, ::-1] if rng.random() < 0.5 else piece
        brighter = (np.arange(256) * rng.uniform(0.5, 1.3)).clip(0, 255).astype(np.uint8)
        piece = brighter[piece]
        square = np.empty((size, size, 3), np.uint8)
        fitted = image.middle_square(piece, size, (height, width)) if crops else image.letterbox(piece, size)
        image.centre(square, fitted[0])
        made.append(square)
    return made
