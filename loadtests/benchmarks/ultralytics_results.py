"""What Ultralytics' own post-processing makes of a network's answer, in pixels of the photo.

Its `predict` imports torchvision, which some installations cannot; these are the parts it calls, in their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from loadtests.benchmarks.random_networks import answer
from serve_app.vision.image import Letterbox


@dataclass(frozen=True, slots=True)
class Own:
    """N objects, best first. `shape` has corners xyxy (N, 4), or (N, 4, 2) of turned boxes."""

    shape: NDArray[np.float32]
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int64]
    masks: NDArray[np.uint8] | None = None  # (N, h, w) of the network input, or of the photo
    points: NDArray[np.float32] | None = None  # (N, K, 3)


@torch.inference_mode()
def results(
    network: Any,  # noqa: ANN401 - Ultralytics has no types
    task: str,
    image: NDArray[np.uint8],
    letterbox: Letterbox,
    conf: float,
    *,
    native: bool = False,
) -> Own:
    """The objects of one network input (H, W, 3). `native`: masks at the size of the photo (`retina_masks`)."""
    from ultralytics.utils import nms, ops  # only now: `layers.py` must import Ultralytics first

    full, photo, size = answer(network, image), (letterbox.height, letterbox.width), image.shape[:2]
    if task == "classify":
        best = full[0].argsort(descending=True, stable=True)
        return Own(np.empty((len(best), 0), np.float32), full[0][best].numpy(), best.numpy())
    head, *others = full if isinstance(full, tuple) else (full,)
    turned, classes = task == "obb", int(network.model[-1].nc)
    (kept,) = nms.non_max_suppression(head.clone(), conf, 0.7, nc=classes, rotated=turned, max_det=300, max_time_img=60)
    # Told how the photo lies in the input. From the two shapes alone, `predict` guesses it up to 1.7 pixels off.
    letterboxed = (letterbox.scale_y, letterbox.scale_x), (letterbox.left, letterbox.top)
    placed = ops.scale_boxes(size, kept[:, :4].clone(), photo, letterboxed, xywh=turned)
    shape = ops.xywhr2xyxyxyxy(torch.cat([placed, kept[:, -1:]], 1)) if turned else placed
    made = shape.numpy(), kept[:, 4].numpy(), kept[:, 5].numpy().astype(np.int64)
    if task == "pose":
        points = kept[:, 6:].view(len(kept), *network.kpt_shape).clone()
        return Own(*made, points=ops.scale_coords(size, points, photo, letterboxed).numpy())
    if task != "segment":
        return Own(*made)
    if native:
        masks = ops.process_mask_native(others[0][0], kept[:, 6:], placed, photo)
    else:
        masks = ops.process_mask(others[0][0], kept[:, 6:], kept[:, :4], size, upsample=True)
    return Own(*made, masks=masks.numpy())
