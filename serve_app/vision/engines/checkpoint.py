"""Reads a `.pt` file as a PyTorch network without running code from it."""

from __future__ import annotations

import re
import struct
import zipfile
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from torch import nn

from serve_app.errors import MissingWeights, UnsafeWeights, WrongWeights
from serve_app.vision.engines.carried import CARRIED, Carried, emptied
from serve_app.vision.engines.layers import FAMILIES, PYTORCH, TASKS, DetectionModel, Network, block, conv, head
from serve_app.vision.image import STRIDE
from serve_app.vision.tasks import by_name
from serve_app.vision.tasks.task import Task

# The only classes in the network of a checkpoint, besides tensors and plain values; `carried.py` lists what
# may stand beside it. A `.pt` file is a pickle, and any other name in it could run code, so it is refused. Calling
# these classes is refused too, because `DetectionModel({"activation": "..."})` evaluates that text. Real
# checkpoints create empty objects and fill them, so they load with stand-ins whose __init__ raises.
ALLOWED = (*PYTORCH, *(layer for layers in (FAMILIES | TASKS).values() for layer in layers))
TASK_OF = {task.network: task for task in by_name.TASKS.values()}
MODULES = "ultralytics.nn.modules"  # a package since 8.0.44; before, one module with all layers
UNFUSED = {conv.Conv: "bn", conv.RepConv: "conv1", block.RepVGGDW: "conv1"}  # a part that fusing takes away
HEADS = {
    "detect": head.Detect, "segment": head.Segment, "pose": head.Pose, "obb": head.OBB, "classify": head.Classify,
}  # fmt: skip
ONE2ONE = "one2one_"  # what the parts of a head without NMS are called beside those of the one for it
EXPORTED = ("export", "format", "dynamic", "shape", "xyxy")  # what an export or an earlier run leaves on a head
DAMAGED = (
    UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError, OverflowError, struct.error,
)  # fmt: skip

RGB = 3
# How files begin that people take for checkpoints.
KINDS = (
    (rb"version https://git-lfs", "it is a Git LFS pointer: run `git lfs pull`"),
    (rb"\s*<(\?xml|!doctype|html|error)", "it is an HTML or XML page, such as a download's error: download it again"),
    (rb"\s*\{", "it is JSON, such as a download's error: download it again"),
    (rb".{8}\{", "it holds safetensors: give the .pt of the training"),
    (rb"\x08.{1,40}(pytorch|onnx|tf2onnx)", "it is an ONNX model: give the .pt that it was exported from"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z", "it is a compressed archive: unpack it"),
)
# Networks that people take for ours, by what their checkpoints name.
OTHERS = (
    (
        r"ultralytics\.nn\.tasks\.(\w+)Model",
        "it is a network of another kind ({}); this service has " + ", ".join(by_name.TASKS),
    ),
    (r"models\.(yolo|common)\.", "it is of the repository of YOLOv5 or YOLOv7: train or pull it with Ultralytics"),
)
LONGEST_NAME = 200  # characters of a class name; each box of each answer repeats it


def _refuse(*_: object, **__: object) -> None:
    raise UnpicklingError("the checkpoint calls a class instead of containing an object")


def stand_in(kind: type) -> type:
    """A class that a file may create and fill, but not call. Of Ultralytics' own code for filling nothing runs."""
    inert = {"__setstate__": nn.Module.__setstate__} if kind.__module__.startswith("ultralytics") else {}
    return type(kind.__name__, (kind,), {"__init__": _refuse} | inert)


STAND_INS: dict[type, Any] = {stand_in(kind): kind for kind in ALLOWED}
NAMES: list[Any] = [  # pairs of what a name in a checkpoint stands for, and the name
    *((s, f"{kind.__module__}.{kind.__qualname__}") for s, kind in STAND_INS.items()),
    *((s, f"{MODULES}.{kind.__name__}") for s, kind in STAND_INS.items() if kind.__module__.startswith(MODULES)),
    # The name in the repository of YOLOv10's authors.
    *((s, "ultralytics.nn.tasks.YOLOv10DetectionModel") for s, kind in STAND_INS.items() if kind is DetectionModel),
    *((Carried, name) for name in CARRIED),
    (emptied, "collections.defaultdict"),
]


def read_checkpoint(checkpoint: Path | IO[bytes], name: str = "the file") -> Network:
    """The network of Ultralytics' `.pt` file, in float32. Batch normalisation is fused only where the file has it so.

    Takes the `ema` of a training that was interrupted, as Ultralytics does. `name` names an open file in error
    messages. Raises MissingWeights when the file cannot be read, UnsafeWeights when it is damaged, is another kind of
    file, or contains anything that could run code, and WrongWeights for a network of other photos than RGB, or of
    larger strides than STRIDE.
    """
    name = str(checkpoint) if isinstance(checkpoint, Path) else name
    try:
        refuse_other_kinds(checkpoint)
        with torch.serialization.safe_globals(NAMES):
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except OSError as error:
        raise MissingWeights(f"cannot read the weights {name}: {error.strerror}") from error
    except DAMAGED as error:
        raise UnsafeWeights(f"{name} is not a YOLO checkpoint that is safe to load: {reason(error)}") from error
    try:
        network: Any = (content.get("ema") or content.get("model")) if isinstance(content, dict) else None
        network = getattr(network, "module", network)  # of DataParallel
        kind = STAND_INS.get(type(network))
        if kind is None or kind.__name__ not in TASK_OF:
            raise UnsafeWeights(f"{name} contains no YOLO network")
        for module in network.modules():
            revive(module)
        last, channels = network.model[-1], network.model[0].conv.in_channels
        if not isinstance(last, HEADS[task_of(network).name]):
            raise UnsafeWeights(f"{name} contains a network without the head of its task")
        if channels != RGB:
            raise WrongWeights(f"{name} is a network for photos of {channels} channels, and this service has RGB")
        stride = 0 if isinstance(last, head.Classify) else int(last.stride.max())
        if stride > STRIDE:
            raise WrongWeights(
                f"{name} has a stride of {stride} pixels (a P6 network), and this service takes {STRIDE}"
            )
        return network.float().eval()
    except DAMAGED as error:
        raise UnsafeWeights(f"{name} contains no complete network: {error}") from error


def revive(module: Any) -> None:  # noqa: ANN401 - a stand-in
    """Makes a stand-in a layer of Ultralytics or PyTorch, of the versions installed here. Raises KeyError."""
    module.__class__ = STAND_INS[type(module)]
    own = vars(module)
    for key in [key for key, value in own.items() if isinstance(value, Carried)]:
        del own[key]
    parts = own["_modules"]
    if any(isinstance(module, kind) and part not in parts for kind, part in UNFUSED.items()):
        own["forward"] = module.forward_fuse
    elif isinstance(module, head.Detect):
        for key in EXPORTED:
            own.pop(key, None)
        if module.end2end:  # its other head, for NMS, was taken away, or the file asks for this one
            own["_end2end"] = False
            for key in [key for key in parts if key.startswith(ONE2ONE)]:
                parts[key.removeprefix(ONE2ONE)], parts[key] = parts[key], None
    elif isinstance(module, block.AAttn) and "all_head_dim" not in own:  # of YOLO12's first release
        own["all_head_dim"] = int(own["head_dim"]) * int(own["num_heads"])


def reason(error: BaseException) -> str:
    """One sentence of PyTorch's long message, without its advice to load the file unsafely."""
    if named := re.search(r"GLOBAL (\S+)", str(error)):
        for pattern, kind in OTHERS:
            if found := re.match(pattern, named[1]):
                return kind.format(found[1])
        return f"it names {named[1]}, which such a network does not need"
    if "persistent_load" in str(error):
        return "it has the format of PyTorch before 1.6: load it with Ultralytics and save it again"
    if re.search("operand|safe_globals|weights_only|reduce", str(error)):
        return "its pickle does more than describe a network"
    causes = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return next(iter(causes), type(error).__name__)


def refuse_other_kinds(checkpoint: Path | IO[bytes]) -> None:
    """Raises UnpicklingError for a file that is something else, with what it is and what to do; or OSError."""
    with checkpoint.open("rb") if isinstance(checkpoint, Path) else nullcontext(checkpoint) as file:
        head = file.read(512)
        script = zipfile.is_zipfile(file) and any(n.endswith("constants.pkl") for n in zipfile.ZipFile(file).namelist())
        file.seek(0)
    if not head:
        raise UnpicklingError("it is empty")
    if script:
        raise UnpicklingError("it is TorchScript: give the .pt that it was exported from")
    for mark, kind in KINDS:
        if re.match(mark, head, re.DOTALL | re.IGNORECASE):
            raise UnpicklingError(kind)


def task_of(network: Network) -> Task:
    """The task that the network was made for."""
    return TASK_OF[type(network).__name__]


def names_of(network: Network) -> tuple[str, ...]:
    """Class names; the index is the class id. Raises WrongWeights unless each class of the head has one."""
    given, last = network.names, network.model[-1]
    classes = int(last.linear.out_features if isinstance(last, head.Classify) else last.nc)
    names = dict(enumerate(given)) if isinstance(given, list | tuple) else given
    if not isinstance(names, dict) or set(names) != set(range(classes)):
        raise WrongWeights(
            f"the network has {classes} classes, and its names are not those of the ids 0 to {classes - 1}"
        )
    texts = tuple(str(names[i]) for i in range(classes))
    for i, text in enumerate(texts):
        # JSON has no surrogates, and a byte that is not UTF-8 may have become one.
        if len(text) > LONGEST_NAME or text.encode(errors="replace").decode() != text:
            raise WrongWeights(f"the name of class {i} is not Unicode text of at most {LONGEST_NAME} characters")
    return texts
