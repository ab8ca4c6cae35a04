"""The layers of every network that serves, by the family or the task that brought them.

This is the only module that imports Ultralytics. That keeps the AGPL dependency in one place, and start-up short
elsewhere.
"""

from __future__ import annotations

import os

# Ultralytics reads this at import. Without it, Ultralytics runs pip inside a request.
os.environ["YOLO_AUTOINSTALL"] = "false"

from PIL import Image
from torch import nn

_pillow_open = Image.open
from ultralytics.nn.modules import block, conv, head
from ultralytics.nn.tasks import (
    BaseModel,
    ClassificationModel,
    DetectionModel,
    OBBModel,
    PoseModel,
    SegmentationModel,
)  # fmt: skip

# Ultralytics replaces it with a function that installs pi_heif when an image cannot be read.
Image.open = _pillow_open

__all__ = ["FAMILIES", "PYTORCH", "TASKS", "DetectionModel", "Network", "block", "conv", "head"]

Network = BaseModel

PYTORCH = (
    nn.Sequential, nn.ModuleList, nn.DataParallel, nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d,
    nn.ZeroPad2d, nn.Upsample, nn.Identity, nn.Linear, nn.AdaptiveAvgPool2d, nn.Dropout,
    nn.SiLU, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.Hardswish, nn.Mish, nn.Tanh,
)  # fmt: skip
FAMILIES = {
    "YOLOv8": (
        DetectionModel, head.Detect, block.DFL, block.SPPF, block.Bottleneck, block.C2f, conv.Concat, conv.Conv,
    ),
    "YOLOv3 to v6, as Ultralytics trains them, and YOLOv8's variants": (
        block.SPP, block.C2, block.C3, block.C3Ghost, block.GhostBottleneck, conv.GhostConv,
    ),
    "YOLOv9": (
        block.AConv, block.ADown, block.CBFuse, block.CBLinear, block.ELAN1, block.RepBottleneck, block.RepCSP,
        block.RepNCSPELAN4, block.SPPELAN, conv.RepConv,
    ),
    "YOLOv10": (
        block.Attention, block.C2fCIB, block.CIB, block.PSA, block.RepVGGDW, block.SCDown, head.v10Detect,
    ),
    "YOLO11 and YOLO26": (block.C2PSA, block.C3k, block.C3k2, block.PSABlock, conv.DWConv),
    "YOLO12": (block.A2C2f, block.AAttn, block.ABlock),
}  # fmt: skip
TASKS = {
    "segment": (SegmentationModel, head.Segment, head.Segment26, block.Proto, block.Proto26),
    "pose": (PoseModel, head.Pose, head.Pose26, block.RealNVP),
    "obb": (OBBModel, head.OBB, head.OBB26),
    "classify": (ClassificationModel, head.Classify),
}
