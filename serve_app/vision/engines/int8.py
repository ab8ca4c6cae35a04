"""Quantises the network's convolutions to int8 with NNCF, for the OpenVINO engine. CPU only.

Calibrates once for each weights and keeps the result in a file. Only the calibration needs the `int8` extra.
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

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as in openvino.py
import openvino as ov

from serve_app.vision import image, sample_photos

logger = logging.getLogger("ray.serve")
CROPS = 64  # costs 0.003-0.008 of mAP50-95; calibration on 300 COCO photos was no better
# This layer stays float: it computes boxes from 0 to 640 pixels, and a step of 8 bits would be 2.5 pixels. NNCF leaves
# the rest of the head's arithmetic float by itself.
FLOAT = (r".*dfl.*",)


def quantised(graph: Any, sha256: str, size: int, folder: Path) -> Any:  # noqa: ANN401 - OpenVINO's own type
    """The graph with int8 convolutions; its input stays uint8 (N, H, W, 3).

    Keeps the result in `folder`. The file name depends on the weights' sha256, `size` and OpenVINO's version. Raises
    RuntimeError when it must calibrate and NNCF is not installed.
    """
    key = hashlib.sha256(f"{sha256} {size} any shape {ov.__version__}".encode()).hexdigest()[:16]
    path = folder / f"int8-{key}.xml"
    if not path.exists():
        made = calibrate(graph, size)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as part:  # another replica may write the same file now
            ov.save_model(made, Path(part) / path.name)
            for file in sorted(Path(part).iterdir()):  # .bin before .xml, as a reader looks for the .xml
                file.replace(path.with_suffix(file.suffix))
    return ov.Core().read_model(path)


def calibrate(graph: Any, size: int) -> Any:  # noqa: ANN401
    """Quantises the graph in 11 s on two cores. Raises RuntimeError without NNCF."""
    try:
        import nncf
    except ImportError as error:
        raise RuntimeError("precision int8 needs NNCF to calibrate new weights: pip install '.[int8]'") from error
    nncf.set_log_level(logging.ERROR)
    logger.info("calibrating int8, which happens once for these weights")
    return nncf.quantize(
        graph,
        nncf.Dataset(crops(size)),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=CROPS,
        ignored_scope=nncf.IgnoredScope(patterns=list(FLOAT), validate=False),
    )


def crops(size: int) -> list[NDArray[np.uint8]]:
    """CROPS network inputs (1, size, size, 3) for calibration, always the same ones.

    Random crops of the sample photos, some mirrored, darker or brighter.
    """
    rng = random.Random(0)  # noqa: S311 - not cryptography
    whole = [image.decode(path.read_bytes(), 52_000_000) for path in sample_photos.files()]
    made = []
    for n in range(CROPS):
        photo = whole[n % len(whole)]
        part = rng.uniform(0.3, 1)
        height, width = (int(side * part) for side in photo.shape[:2])
        y, x = (rng.randint(0, side - used) for side, used in zip(photo.shape[:2], (height, width), strict=True))
        piece = photo[y : y + height, x : x + width]
        piece = piece[:, ::-1] if rng.random() < 0.5 else piece
        bright = (piece * rng.uniform(0.5, 1.3)).clip(0, 255).astype(np.uint8)
        square = np.empty((1, size, size, 3), np.uint8)
        image.centre(square[0], image.letterbox(bright, size)[0])
        made.append(square)
    return made
