"""The network's convolutions in int8, by NNCF: calibrated once for each weights, then read from a file. CPU only.

Needs the `int8` extra, for the calibration alone: a folder that holds the file needs nothing.
"""

from __future__ import annotations

import hashlib
import logging
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as in openvino_model
import openvino as ov

from serve_app import image, photos

logger = logging.getLogger("ray.serve")
CROPS = 64  # more do not help: 0.003-0.008 of mAP50-95 lost with 64, 300 COCO photos were no better
# The head's arithmetic on boxes spans 0-640 pixels: 8 bits of that are 2.5 pixels.
FLOAT = (r".*dfl.*", r".*aten::(sub|add|cat|mul|div|sigmoid|softmax).*model.22.*")


def quantised(graph: Any, sha256: str, size: int, folder: Path) -> Any:  # noqa: ANN401 - OpenVINO's own type
    """The graph (uint8 squares of `size` pixels in) with int8 convolutions. Raises RuntimeError without NNCF.

    Kept in `folder` under the weights' hash, the square's side and OpenVINO's version.
    """
    key = hashlib.sha256(f"{sha256} {size} {ov.__version__}".encode()).hexdigest()[:16]
    path = folder / f"int8-{key}.xml"
    if not path.exists():
        made = calibrate(graph, size)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as part:  # another replica may be writing the same
            ov.save_model(made, Path(part) / path.name)
            for file in sorted(Path(part).iterdir()):  # the .bin first: whoever sees the .xml finds both
                file.replace(path.with_suffix(file.suffix))
    return ov.Core().read_model(path)


def calibrate(graph: Any, size: int) -> Any:  # noqa: ANN401
    """Takes 11 s on two cores."""
    try:
        import nncf
    except ImportError as error:
        raise RuntimeError("precision int8 needs NNCF once for each weights: pip install '.[int8]'") from error
    nncf.set_log_level(logging.ERROR)
    logger.info("calibrating int8, once for these weights")
    return nncf.quantize(
        graph,
        nncf.Dataset(crops(size)),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=CROPS,
        ignored_scope=nncf.IgnoredScope(patterns=list(FLOAT), validate=False),
    )


def crops(size: int) -> list[NDArray[np.uint8]]:
    """Letterboxed pieces of the photos every installation has, mirrored, darker and brighter; always the same ones."""
    chosen = random.Random(0)  # noqa: S311 - not cryptography
    whole = [image.decode(path.read_bytes(), 52_000_000) for path in photos.files()]
    made = []
    for n in range(CROPS):
        photo = whole[n % len(whole)]
        part = chosen.uniform(0.3, 1)
        height, width = (int(side * part) for side in photo.shape[:2])
        y, x = (chosen.randint(0, side - used) for side, used in zip(photo.shape[:2], (height, width), strict=True))
        piece = photo[y : y + height, x : x + width]
        piece = piece[:, ::-1] if chosen.random() < 0.5 else piece
        bright = (piece * chosen.uniform(0.5, 1.3)).clip(0, 255).astype(np.uint8)
        made.append(image.letterbox(bright, size)[0][None])
    return made
