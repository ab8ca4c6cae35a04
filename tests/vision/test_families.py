"""Every family of detection networks that Ultralytics trains: it loads, and finds what Ultralytics' own code finds.

The networks have random weights, spread out so that they find something, because no trained ones can be had offline.
"""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
from torch import nn

from loadtests.benchmarks.families import agreement
from loadtests.benchmarks.random_networks import CLASSES, FAMILIES, answer, checkpoint, network
from loadtests.gpu.cpu_stream import CpuStream
from serve_app.errors import WeightsError, WrongWeights
from serve_app.vision import boxes
from serve_app.vision.engines.checkpoint import names_of, read_checkpoint
from serve_app.vision.engines.cuda import CudaEngine
from serve_app.vision.engines.engine import Engine
from serve_app.vision.engines.layers import DetectionModel
from serve_app.vision.engines.openvino import OpenVinoEngine, graph
from serve_app.vision.engines.pytorch import TorchEngine
from serve_app.vision.tasks.by_name import TASKS
from tests.checkpoints import damaged, renamed

SHAPES = [(160, 128), (96, 160), (160, 160), (32, 160)]


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        np.kron(rng.integers(0, 256, (h // 16, w // 16, 3)), np.ones((16, 16, 1))).astype(np.uint8) for h, w in SHAPES
    ]


def agree(engine: Engine, own: nn.Module, shapes: slice = slice(None)) -> None:
    """Random networks amplify the last digits of float32: without that, 0.999 and 0.001 would do for most of them."""
    same = agreement(engine, own, images()[shapes])
    assert same.anchors > 20
    assert same.iou >= 0.98
    assert same.score <= 0.03
    assert same.other_classes <= same.anchors // 100


@pytest.mark.parametrize("family", FAMILIES)
def test_it_finds_what_ultralytics_finds(family: str) -> None:
    own = network(family)
    content = checkpoint({"model": copy.deepcopy(own).half()})
    own = copy.deepcopy(own).half().float()
    loaded = read_checkpoint(content)
    assert names_of(loaded) == tuple(own.names.values())
    agree(TorchEngine(copy.deepcopy(loaded), 1), own)
    agree(OpenVinoEngine(graph(copy.deepcopy(loaded)), ("a",) * CLASSES, TASKS["detect"], "float32", 1), own)
    square = slice(2, 3)  # the only shape of an engine for GPUs; its code on the CPU, with CUDA's place taken
    agree(CudaEngine(loaded, 160, "float32", CpuStream), own, square)


@pytest.mark.parametrize("family", ["yolov9t", "yolov10n", "yolo26n"])
def test_fused_networks_load(family: str) -> None:
    own = copy.deepcopy(network(family)).fuse(verbose=False)
    agree(TorchEngine(read_checkpoint(checkpoint({"model": own})), 1), own)


@pytest.mark.parametrize("family", ["yolov10n", "yolo26n"])
@pytest.mark.parametrize("how", ["asked for", "fused"])
def test_a_head_without_nms_serves_if_the_file_says_so(family: str, how: str) -> None:
    """Its boxes are those of the other head of the network, which needs no NMS; they go through it all the same."""
    own = copy.deepcopy(network(family))
    own.model[-1].end2end = True
    if how == "fused":
        own.fuse(verbose=False)
    loaded = read_checkpoint(checkpoint({"model": own}))
    own.model[-1].agnostic_nms, own.model[-1].max_det = True, 10**6  # each anchor with its best class, not the best 300
    image = images()[2]
    (wanted,) = answer(own, image).numpy()
    best = boxes.candidates(TorchEngine(loaded, 1)([image])[0][0], 0.25).take(np.arange(50))
    for box, score, k in zip(best.xyxy, best.confidence, best.class_id, strict=True):
        same = wanted[(wanted[:, 5] == k) & (np.abs(wanted[:, 4] - score) < 0.01)]
        assert np.abs(same[:, :4] - box).max(1).min() < 1


def test_the_first_release_of_yolo12_loads() -> None:
    old = copy.deepcopy(network("yolo12n"))
    for layer in old.modules():
        vars(layer).pop("all_head_dim", None)
    agree(TorchEngine(read_checkpoint(checkpoint({"model": old})), 1), network("yolo12n"))


def test_the_name_of_yolov10s_authors_is_known() -> None:
    names = {"ultralytics.nn.tasks\nDetectionModel": "ultralytics.nn.tasks\nYOLOv10DetectionModel"}
    file = renamed(checkpoint({"model": network("yolov10n")}).getvalue(), names)
    assert b"YOLOv10DetectionModel" in file
    assert read_checkpoint(io.BytesIO(file)).names == network("yolov10n").names


@pytest.mark.parametrize("family", ["yolov5n-p6", "yolov8n-p6", "yolo26n-p6"])
def test_larger_strides_are_refused(family: str) -> None:
    with pytest.raises(WrongWeights, match="a stride of 64 pixels"):
        read_checkpoint(checkpoint({"model": DetectionModel(f"{family}.yaml", nc=2, verbose=False)}))


@pytest.mark.parametrize("family", ["yolov5n", "yolov9t", "yolov10n", "yolo12n", "yolo26n"])
def test_damaged_pickles_give_our_own_errors(family: str) -> None:
    refused = 0
    for file in damaged(checkpoint({"model": network(family)}).getvalue(), 30):
        try:
            names_of(read_checkpoint(io.BytesIO(file)))
        except WeightsError:
            refused += 1
    assert refused
