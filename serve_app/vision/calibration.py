"""Network inputs for the calibration of int8: parts of photos, always the same ones. Must not know the network."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve_app.vision import image

LEAST = 64  # inputs; 300 COCO photos were no better
MAX_PIXELS = 52_000_000


def images(photos: Sequence[bytes], size: int) -> list[NDArray[np.uint8]]:
    """At least LEAST network inputs uint8 (size, size, 3): parts of encoded photos, some mirrored, darker or brighter.

    Each photo has the same number of parts, or one more. Raises AppErrors for a photo that cannot be read.
    """
    rng = random.Random(0)  # noqa: S311 - not cryptography
    whole = [image.decode(photo, MAX_PIXELS) for photo in photos]
    made = []
    for n in range(max(LEAST, len(whole))):
        photo = whole[n % len(whole)]
        part = rng.uniform(0.3, 1)
        height, width = (max(1, int(side * part)) for side in photo.shape[:2])
        y, x = (rng.randint(0, side - used) for side, used in zip(photo.shape[:2], (height, width), strict=True))
        piece = photo[y : y + height, x : x + width]
        piece = piece[:, ::-1] if rng.random() < 0.5 else piece
        bright = (piece * rng.uniform(0.5, 1.3)).clip(0, 255).astype(np.uint8)
        square = np.empty((size, size, 3), np.uint8)
        image.centre(square, image.letterbox(bright, size)[0])
        made.append(square)
    return made
