"""Checkpoints that Ultralytics loads: of early 2023, of interrupted trainings, fused, with a loss or paths beside them.

Each is made from the bundled model, and must give the numbers of Ultralytics' own network.
"""

from __future__ import annotations

import copy
import io
import os
import pathlib
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from serve_app.errors import UnsafeWeights, WeightsError
from serve_app.vision.engines.checkpoint import NAMES, names_of, read_checkpoint
from serve_app.vision.engines.layers import DetectionModel
from serve_app.vision.engines.pytorch import TorchEngine
from serve_app.vision.image import decode, letterbox
from serve_app.vision.sample_photos import bus
from serve_app.weights.identity import BUNDLED
from tests.checkpoints import damaged, renamed

Build = Callable[[DetectionModel], dict[str, Any]]
# Where the classes of today were until Ultralytics 8.0.43, and NumPy's functions until 2.0.
EARLY_2023 = {
    **{f"ultralytics.nn.modules.{part}": "ultralytics.nn.modules" for part in ("block", "conv", "head")},
    "ultralytics.utils": "ultralytics.yolo.utils",
    "ultralytics.utils.loss": "ultralytics.yolo.utils.loss",
    "ultralytics.utils.tal": "ultralytics.yolo.utils.tal",
    "numpy._core.multiarray": "numpy.core.multiarray",
}
PHOTO = torch.from_numpy(letterbox(decode(bus(), 10**7), 320)[0]).permute(2, 0, 1)[None] / 255


def own(size: str = "float32") -> DetectionModel:
    """The bundled network as Ultralytics itself would hold it."""
    network = torch.load(BUNDLED, weights_only=False)["model"]
    return network.half() if size == "half" else network.float()


def head(network: nn.Module) -> torch.Tensor:
    """What a copy of the network answers (1, 4 + classes, A)."""
    with torch.inference_mode():
        return copy.deepcopy(network).float().eval()(PHOTO)[0]


def saved(content: object, moved: dict[str, str] | None = None, **options: Any) -> bytes:
    """A checkpoint file. `moved` gives the modules of its classes another name, in the pickle's own GLOBAL steps."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return renamed(file.getvalue(), moved) if moved else file.getvalue()


def with_loss(network: DetectionModel) -> dict[str, Any]:
    from ultralytics.utils import IterableSimpleNamespace
    from ultralytics.utils.loss import v8DetectionLoss

    network.args = IterableSimpleNamespace(box=7.5, cls=0.5, dfl=1.5, imgsz=320)
    network.criterion = v8DetectionLoss(network)
    return {"model": network, "train_args": network.args}


def configured(network: DetectionModel) -> dict[str, Any]:
    """The first releases kept their settings with OmegaConf, whose objects hold types and a defaultdict."""
    types = {"ref_type": Any, "object_type": dict, "element_type": list, "key_type": int}
    return with_loss(network) | {"types": types, "flags": defaultdict(list, {"readonly": [True]})}


def interrupted(network: DetectionModel) -> dict[str, Any]:
    """As Ultralytics' trainer writes `last.pt` after each epoch."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for weight in network.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    return {
        "epoch": 3, "best_fitness": np.float64(0.31), "model": None, "ema": network.half(), "updates": 12,
        "optimizer": optimizer.state_dict(), "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "train_args": {"imgsz": 320, "save_dir": pathlib.PosixPath("runs/detect/train")},
        "train_metrics": {"metrics/mAP50(B)": np.float64(0.5), "curve": np.zeros(3)},
        "git": {"root": "None", "branch": "main"}, "version": "8.4.0",
    }  # fmt: skip


def both(network: DetectionModel) -> dict[str, Any]:
    worse = copy.deepcopy(network)
    for weight in worse.parameters():
        weight.data.zero_()
    return {"model": worse, "ema": network}


def fused(network: DetectionModel) -> dict[str, Any]:
    return {"model": network.fuse(verbose=False)}


def activated(network: DetectionModel) -> dict[str, Any]:
    """As with `activation: nn.LeakyReLU(0.1)` in the model's yaml."""
    for layer in network.modules():
        if isinstance(getattr(layer, "act", None), nn.SiLU):
            layer.act = nn.LeakyReLU(0.1)
    return {"model": network}


def exported(network: DetectionModel) -> dict[str, Any]:
    """As an export leaves the head, once it has run."""
    network.eval()(PHOTO)
    network.model[-1].export, network.model[-1].format = True, "onnx"
    return {"model": network}


def upsampled(network: DetectionModel) -> dict[str, Any]:
    """As PyTorch 1.10 wrote an Upsample."""
    for layer in network.modules():
        vars(layer).pop("recompute_scale_factor", None)
    return {"model": network}


@pytest.mark.parametrize(
    ("build", "moved", "marks"),
    [
        pytest.param(with_loss, EARLY_2023, [b"modules\nC2f", b"yolo.utils.loss\nBboxLoss"], id="early 2023"),
        pytest.param(
            with_loss,
            {"ultralytics.utils.loss\nv8DetectionLoss": "ultralytics.yolo.v8.detect.train\nLoss"} | EARLY_2023,
            [b"yolo.v8.detect.train\nLoss", b"yolo.utils\nIterableSimpleNamespace"],
            id="the loss of early 2023",
        ),
        pytest.param(with_loss, {}, [b"v8DetectionLoss", b"TaskAlignedAssigner"], id="a loss"),
        pytest.param(interrupted, {}, [b"_core.multiarray\nscalar", b"PosixPath"], id="interrupted"),
        pytest.param(interrupted, EARLY_2023, [b"numpy.core.multiarray\nscalar"], id="interrupted, NumPy 1"),
        pytest.param(interrupted, {"pathlib\nPosixPath": "pathlib\nWindowsPath"}, [b"WindowsPath"], id="from Windows"),
        pytest.param(interrupted, {"pathlib\nPosixPath": "pathlib._local\nPosixPath"}, [b"_local"], id="Python 3.13"),
        pytest.param(both, {}, [b"ema"], id="the EMA before the model"),
        pytest.param(fused, {}, [b"forward_fuse"], id="fused"),
        pytest.param(lambda n: {"model": fused(n)["model"].half()}, {}, [b"HalfStorage"], id="fused, half"),
        pytest.param(lambda n: fused(n) | with_loss(n), EARLY_2023, [b"forward_fuse"], id="fused in early 2023"),
        pytest.param(lambda n: {"model": n.half()}, {}, [b"HalfStorage"], id="half"),
        pytest.param(lambda n: {"model": nn.DataParallel(n)}, {}, [b"DataParallel"], id="DataParallel"),
        pytest.param(activated, {}, [b"LeakyReLU"], id="another activation"),
        pytest.param(exported, {}, [b"onnx"], id="left by an export"),
        pytest.param(upsampled, {}, [b"Upsample"], id="of PyTorch 1.10"),
        pytest.param(
            configured,
            {"ultralytics.utils\nIterableSimpleNamespace": "omegaconf.dictconfig\nDictConfig"} | EARLY_2023,
            [b"DictConfig", b"typing\nAny", b"defaultdict", b"builtin__\nlong"],
            id="the settings of 8.0.0",
        ),
    ],
)
def test_the_numbers_are_those_of_ultralytics(build: Build, moved: dict[str, str], marks: list[bytes]) -> None:
    content = build(own())
    network = content.get("ema") or content["model"]
    expected = copy.deepcopy(network)
    for layer in expected.modules():
        if isinstance(layer, nn.Upsample):
            layer.recompute_scale_factor = None
    getattr(expected, "module", expected).model[-1].export = False
    file = saved(content, moved)
    assert all(mark in file for mark in marks)
    loaded = read_checkpoint(io.BytesIO(file))
    torch.testing.assert_close(head(loaded), head(expected), rtol=0, atol=0)
    assert (head(loaded)[:, 4:] > 0.5).any(), "zeros would also be the same"
    assert names_of(loaded) == names_of(read_checkpoint(BUNDLED))
    images = (PHOTO * 255).byte().permute(0, 2, 3, 1).numpy()
    assert TorchEngine(loaded, 1)(images)[0][0].shape == (6, head(expected).shape[2])


class Calls:
    """An object that calls something when it is loaded."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.step = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.step


def another_kind(_: DetectionModel) -> dict[str, Any]:
    from ultralytics.nn.tasks import WorldModel

    return {"model": WorldModel("yolov8s-world.yaml", nc=2, verbose=False)}


@pytest.mark.parametrize(
    ("build", "options", "said"),
    [
        pytest.param(lambda _: {"model": Calls(os.system, "true")}, {}, "it names posix.system,", id="a command"),
        pytest.param(lambda n: {"model": n, "x": Calls(print, "x")}, {}, "it names print,", id="beside a network"),
        pytest.param(lambda n: {"model": n, "x": Calls(eval, "1")}, {}, "it names eval,", id="eval"),
        pytest.param(
            lambda n: {"model": n, "x": Calls(n.fuse)}, {}, "more than describe", id="a call of a bound method"
        ),
        pytest.param(another_kind, {}, "another kind (World); this service has detect, segment,", id="YOLO-World"),
        pytest.param(
            lambda n: {"model": n},
            {"moved": {"ultralytics.nn.tasks\nDetectionModel": "models.yolo\nModel"}},
            "repository of YOLOv5 or YOLOv7",
            id="of YOLOv5's own repository",
        ),
        pytest.param(lambda n: {"model": n}, {"pickle_protocol": 4}, "more than describe", id="another protocol"),
        pytest.param(
            lambda n: {"model": n}, {"_use_new_zipfile_serialization": False}, "before 1.6", id="of old PyTorch"
        ),
        pytest.param(lambda n: n.state_dict(), {}, "contains no YOLO network", id="tensors alone"),
        pytest.param(lambda _: {"ema": torch.zeros(2)}, {}, "contains no complete network", id="a tensor as EMA"),
        pytest.param(lambda _: {"model": np.float64(1)}, {}, "contains no YOLO", id="a number as model"),
        pytest.param(lambda n: {"model": nn.DataParallel(n.model)}, {}, "contains no YOLO", id="layers alone"),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_refusal_says_why_in_one_sentence(build: Build, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsafeWeights) as refused:
        read_checkpoint(io.BytesIO(saved(build(own()), **options)))
    assert said in str(refused.value)
    assert not any(advice in str(refused.value) for advice in ("weights_only", "safe_globals", "trust", "\n"))


def test_what_is_carried_along_keeps_nothing_and_does_nothing() -> None:
    for kind in {
        stand_in for stand_in, name in NAMES if name.split(".")[0] in ("builtins", "numpy", "pathlib", "types")
    }:
        one = kind("anything", x=1)
        one.__setstate__({"forward": print})
        assert not hasattr(one, "__dict__")
        assert not callable(one)


def test_damaged_pickles_give_our_own_errors() -> None:
    network = DetectionModel({"nc": 1, "backbone": [[-1, 1, "Conv", [8, 3, 32]]], "head": [[[0], 1, "Detect", [1]]]})
    content = saved(interrupted(network) | {"ema": fused(with_loss(network.float())["model"])["model"]})
    outcomes = set()
    for file in damaged(content, 300):
        try:
            names_of(read_checkpoint(io.BytesIO(file)))
            outcomes.add("loaded")
        except WeightsError:
            outcomes.add("refused")
    assert outcomes == {"loaded", "refused"}
