"""Decodes a network's head in float32 when its convolutions run in float16.

Float16 has steps of 0.5 above 512, so boxes that are decoded in it are up to half a pixel off.
"""

from __future__ import annotations

import torch
from torch import nn

from serve_app.vision.engines.layers import Network, head
from serve_app.vision.engines.pytorch import with_visible


def float_head(network: Network, size: int) -> nn.Module:
    """A network of any precision that gives the outputs of its task in float32, for inputs of `size` pixels."""
    return FloatClasses(network) if isinstance(network.model[-1], head.Classify) else FloatBoxes(network, size)


class FloatClasses(nn.Module):
    """A network that classifies."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps images (N, 3, S, S) in 0..1 to probabilities (N, C)."""
        return (self.network(batch)[1].softmax(1, dtype=torch.float32),)


class FloatBoxes(nn.Module):
    """A network with boxes."""

    def __init__(self, network: Network, size: int) -> None:
        super().__init__()
        self._head = network.model[-1]
        self._head.forward = self._raw  # what its convolutions give, instead of decoding it in their precision
        self.network, self._bins = network, self._head.reg_max
        cells, strides = [], []
        for stride in self._head.stride.int().tolist():
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

    def _raw(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        raw: dict[str, torch.Tensor] = self._head.forward_head(features, **self._head.one2many)
        if isinstance(self._head, head.Segment):
            all_sizes = isinstance(self._head, head.Segment26)
            raw["prototypes"] = self._head.proto(features if all_sizes else features[0])
        return raw

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps images (N, 3, S, S) in 0..1 to heads float32 (N, 6 + E, A) and what else the task has.

        The network gives, for each side of a box, the likelihood of each distance from the anchor; the mean distance
        counts (Generalized Focal Loss, Li et al. 2020). With one bin, as in YOLO26, it gives the distance itself.
        """
        raw = self.network(batch)
        sides = raw["boxes"].unflatten(1, (4, self._bins))
        if self._bins > 1:
            sides = sides.softmax(2, dtype=torch.float32) * self.distances
        left_top, right_bottom = (sides.sum(2, dtype=torch.float32) * self.strides).chunk(2, 1)
        middle, extra = (right_bottom - left_top) / 2, self._extra(raw)
        if isinstance(self._head, head.OBB):  # the distances are those before the turn
            cos, sin = extra.cos(), extra.sin()
            x, y = middle.chunk(2, 1)
            middle = torch.cat([x * cos - y * sin, x * sin + y * cos], 1)
        score, class_id = raw["scores"].max(1, keepdim=True)
        boxes = torch.cat([self.centres + middle, left_top + right_bottom], 1)
        decoded = torch.cat([boxes, score.float().sigmoid(), class_id.float(), extra], 1)
        return (decoded, raw["prototypes"].float()) if "prototypes" in raw else (decoded,)

    def _extra(self, raw: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the task adds to each box, decoded: (N, E, A)."""
        if isinstance(self._head, head.OBB):
            return raw["angle"].float()
        if isinstance(self._head, head.Segment):
            return raw["mask_coefficient"].float()
        if not isinstance(self._head, head.Pose):
            return raw["boxes"][:, :0].float()
        points = raw["kpts"].float().unflatten(1, self._head.kpt_shape)
        cells = points[:, :, :2] if isinstance(self._head, head.Pose26) else points[:, :, :2] * 2 - 0.5
        xy = cells * self.strides + self.centres
        return with_visible(torch.cat([xy, points[:, :, 2:].sigmoid()], 2).flatten(1, 2), self._head)
