"""What a checkpoint carries along and its network does not need: losses, settings, paths and numbers of the training.

Their names are allowed in a checkpoint, and each of them stands for `Carried` instead of the class of that name. So
nothing of theirs is imported or called.
"""

from __future__ import annotations


class Carried:
    """An object that takes whatever the checkpoint gives it, and keeps nothing of it."""

    __slots__ = ()

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def emptied(*_: object) -> dict[object, object]:
    """What a defaultdict becomes: the pickle may fill a plain dict only."""
    return {}


PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
# By the folders of Ultralytics: `ultralytics.yolo` until 8.0.135, then `ultralytics`.
LOSSES = (
    "loss.v8DetectionLoss", "loss.BboxLoss", "loss.DFLoss", "loss.VarifocalLoss", "loss.FocalLoss",
    "loss.v8SegmentationLoss", "loss.SegmentLoss26", "loss.MultiChannelDiceLoss", "loss.BCEDiceLoss",
    "loss.v8PoseLoss", "loss.PoseLoss26", "loss.KeypointLoss", "loss.RLELoss",
    "loss.v8OBBLoss", "loss.RotatedBboxLoss", "loss.v8ClassificationLoss", "loss.E2EDetectLoss", "loss.E2ELoss",
    "tal.TaskAlignedAssigner", "tal.PoseTaskAlignedAssigner", "tal.SegTaskAlignedAssigner",
    "tal.RotatedTaskAlignedAssigner", "IterableSimpleNamespace",
)  # fmt: skip
TRANSFORMS = (
    "transforms.Compose", "transforms.Resize", "transforms.CenterCrop", "transforms.ToTensor", "transforms.Normalize",
    "functional.InterpolationMode",
)  # fmt: skip
CARRIED = (
    *(f"{utils}.{name}" for utils in ("ultralytics.utils", "ultralytics.yolo.utils") for name in LOSSES),
    "ultralytics.yolo.v8.detect.train.Loss", "ultralytics.yolo.v8.segment.train.SegLoss",
    "ultralytics.yolo.v8.pose.train.PoseLoss", "ultralytics.yolo.v8.classify.train.ClassificationLoss",
    # How a network that classifies wants its photos: the middle square, which `image.py` cuts out itself.
    *(f"torchvision.transforms.{name}" for name in TRANSFORMS),
    "torch.nn.modules.loss.BCEWithLogitsLoss",
    "types.SimpleNamespace",
    # The settings until 8.0.4, and the types that they name.
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig", "nodes.AnyNode")),
    "omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata",
    "typing.Any", "builtins.dict", "builtins.list", "builtins.int",
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in PATHS),
    # Numbers and arrays of NumPy 1 and 2, such as `best_fitness`.
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype", "numpy.ndarray",
    # `fuse` binds a method to each convolution. The pickle gets it by name; read_checkpoint binds it again itself.
    "builtins.getattr",
)  # fmt: skip
