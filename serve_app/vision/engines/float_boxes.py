"""Decodes boxes in float32 for a network whose convolutions run in float16.

Float16 has steps of 0.5 above 512, so boxes that are decoded in it are up to half a pixel off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from serve_app.vision.engines.layers import DetectionModel


class FloatBoxes(nn.Module):
    """A network of any precision whose head gives the best class of each anchor, boxes and scores in float32."""

    def __init__(self, network: DetectionModel, size: int) -> None:
        super().__init__()
        detect = network.model[-1]
        detect.training = True  # it then returns what its convolutions give, instead of decoding it in their precision
        self.network, self.size, self._bins = network, size, detect.reg_max
        cells, strides = [], []
        for stride in detect.stride.int().tolist():
            side = torch.arange(size // stride) + 0.5
            y, x = torch.meshgrid(side, side, indexing="ij")
            cells.append(torch.stack([x.flatten(), y.flatten()]) * stride)
            strides.append(torch.full((1, x.numel()), float(stride)))
        self.centres: torch.Tensor  # (2, A): x, y of each anchor in pixels
        self.strides: torch.Tensor  # (1, A)
        self.distances: torch.Tensor  # (bins, 1): what each bin stands for, in strides
        self.register_buffer("centres", torch.cat(cells, 1))
        self.register_buffer("strides", torch.cat(strides, 1))
        self.register_buffer("distances", torch.arange(float(self._bins))[:, None])
        self.anchors = self.centres.shape[1]

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Maps images (N, 3, S, S) in 0..1 to heads float32 (N, 6, A), see `Engine`.

        The network gives, for each side of a box, the likelihood of each distance from the anchor; the mean distance
        counts (Generalized Focal Loss, Li et al. 2020). With one bin, as in YOLO26, it gives the distance itself.
        """
        raw = self.network(batch)
        sides = raw["boxes"].unflatten(1, (4, self._bins))
        if self._bins > 1:
            sides = sides.softmax(2, dtype=torch.float32) * self.distances
        left_top, right_bottom = (sides.sum(2, dtype=torch.float32) * self.strides).chunk(2, 1)
        score, class_id = raw["scores"].max(1, keepdim=True)
        centre = self.centres + (right_bottom - left_top) / 2
        return torch.cat([centre, left_top + right_bottom, score.float().sigmoid(), class_id.float()], 1)
