from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from serve_app.errors import WeightsError
from serve_app.settings import Precision
from serve_app.vision import boxes, image
from serve_app.vision.engines import openvino
from serve_app.vision.engines.checkpoint import names_of, read_checkpoint, task_of
from serve_app.vision.engines.engine import OnSquares
from serve_app.vision.engines.layers import DetectionModel
from serve_app.vision.engines.openvino import OpenVinoEngine, graph
from serve_app.vision.engines.pytorch import TorchEngine
from serve_app.weights import identity


class Attack:
    """A pickle of it runs a command when it is loaded."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.proof}",)


class Call:
    """A pickle of it calls a class that the allow-list has; Ultralytics would evaluate the text it is given."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        layers = {"backbone": [[-1, 1, "Conv", [8, 3, 2]]], "head": [[[0], 1, "Detect", [1]]]}
        return DetectionModel, ({"nc": 1, "activation": f"open({str(self.proof)!r}, 'w')"} | layers,)


@pytest.fixture(scope="module")
def path() -> Path:
    return Path(identity.pin_file("auto").uri)


@pytest.fixture(scope="module")
def model(path: Path) -> TorchEngine:
    return TorchEngine(read_checkpoint(path))


def squares(*photos: bytes) -> np.ndarray:
    made = np.empty((len(photos), 640, 640, 3), np.uint8)
    for square, photo in zip(made, photos, strict=True):
        image.centre(square, image.letterbox(image.decode(photo, 10**7), 640)[0])
    return made


@pytest.mark.parametrize("attack", [Attack, Call])
def test_a_checkpoint_that_runs_code_is_refused(tmp_path: Path, attack: type[Attack | Call]) -> None:
    proof, bad = tmp_path / "proof", tmp_path / "bad.pt"
    torch.save({"model": attack(proof)}, bad)
    with pytest.raises(WeightsError, match="safe to load"):
        read_checkpoint(bad)
    assert not proof.exists()
    unsafe = "import sys, torch, ultralytics.nn.tasks; torch.load(sys.argv[1], weights_only=False)"
    subprocess.run([sys.executable, "-c", unsafe, str(bad)], check=False, capture_output=True)
    assert proof.exists(), "the attack itself works, so the refusal above meant something"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not a checkpoint", id="text"),
        pytest.param(pickle.dumps({"model": None}, protocol=2), id="a bare pickle"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    bad = tmp_path / "bad.pt"
    bad.write_bytes(content)
    with pytest.raises(WeightsError):
        read_checkpoint(bad)


def test_a_checkpoint_cut_off_or_without_a_network_is_refused(tmp_path: Path, path: Path) -> None:
    cut, empty = tmp_path / "cut.pt", tmp_path / "empty.pt"
    cut.write_bytes(path.read_bytes()[:-1000])
    torch.save({"epoch": 1}, empty)
    for bad in (cut, empty, tmp_path / "missing.pt"):
        with pytest.raises(WeightsError):
            read_checkpoint(bad)


def test_pillow_is_left_as_it_was() -> None:
    """Ultralytics replaces `Image.open` by a function that may run pip inside a request."""
    assert Image.open.__module__ == "PIL.Image"


def test_the_classes_are_those_of_the_checkpoint(model: TorchEngine) -> None:
    assert "bus" in model.class_names


def iou(one: np.ndarray, other: np.ndarray) -> float:
    corner = np.minimum(one[2:4], other[2:4]) - np.maximum(one[:2], other[:2])
    overlap = corner.clip(0).prod()
    area = [(b[2:4] - b[:2]).prod() for b in (one, other)]
    return float(overlap / (sum(area) - overlap))


@pytest.mark.parametrize(("conf", "threshold"), [(0.25, 0.7), (0.001, 0.7), (0.05, 0.3)])
def test_boxes_agree_with_ultralytics_forward_and_nms(
    model: TorchEngine, path: Path, bus: bytes, zidane: bytes, conf: float, threshold: float
) -> None:
    from ultralytics.utils.nms import non_max_suppression as ultralytics_nms  # after engines.checkpoint, which tames it

    batch = squares(bus, zidane)
    tensor = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        raw = read_checkpoint(path)(tensor)
    expected = ultralytics_nms(raw, conf, threshold, max_det=300, max_time_img=60)
    for (head,), want in zip(model(batch), expected, strict=True):
        got = boxes.non_max_suppression(boxes.candidates(head, conf), threshold, 300)
        assert len(got) == len(want) > 0
        # Equal confidences may come in any order, so each box looks for its partner.
        for box, score, k in zip(got.xyxy, got.confidence, got.class_id, strict=True):
            same = [w for w in want.numpy() if int(w[5]) == k and abs(w[4] - score) <= 0.01]
            assert max(iou(box, w) for w in same) >= 0.99


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def openvino_engine(request: pytest.FixtureRequest, path: Path) -> OpenVinoEngine:
    return compiled(read_checkpoint(path), request.param)


def compiled(network: DetectionModel, precision: Precision) -> OpenVinoEngine:
    return OpenVinoEngine(graph(network), names_of(network), task_of(network), precision)


def test_openvino_agrees_with_pytorch(
    model: TorchEngine, openvino_engine: OpenVinoEngine, bus: bytes, zidane: bytes
) -> None:
    """In float32 as good as exactly; in bfloat16, with its 8 bits, each sure object to 0.9 IoU and 0.08 of its score."""
    exact = openvino_engine.precision == "float32"
    batch = squares(bus, zidane)
    for (want,), (got,) in zip(model(batch), openvino_engine(batch), strict=True):
        sure = want[4] >= 0.25
        assert sure.any()
        assert (want[5] == got[5])[sure].all()
        np.testing.assert_allclose(got[4, sure], want[4, sure], atol=1e-3 if exact else 0.08)
        for one, other in zip(boxes.corners(want[:4, sure]), boxes.corners(got[:4, sure]), strict=True):
            assert iou(one, other) >= (0.999 if exact else 0.9)


SHAPES = [(640, 640), (480, 640), (640, 448), (32, 640), (640, 480), (480, 640)]


def test_images_of_any_shapes_share_a_batch_and_change_no_others_answer(
    model: TorchEngine, openvino_engine: OpenVinoEngine, bus: bytes
) -> None:
    photo = image.decode(bus, 10**7)
    images = [np.ascontiguousarray(np.resize(photo[i:], (*shape, 3))) for i, shape in enumerate(SHAPES)]
    alone = [openvino_engine([one])[0][0] for one in images]
    assert [head.shape for head in alone] == [(6, h * w * 21 // 1024) for h, w in SHAPES]
    exact = openvino_engine.precision == "float32"
    for (want,), got in zip(model(images), alone, strict=True):
        np.testing.assert_allclose(got[4], want[4], atol=1e-3 if exact else 0.1)
    with ThreadPoolExecutor(4) as pool:  # batches beside each other, also of one image
        batches = [images, images[::-1], *([one] for one in images), images[2:]] * 3
        for batch, heads in zip(batches, pool.map(openvino_engine, batches), strict=True):
            for one, (head,) in zip(batch, heads, strict=True):
                place = next(i for i, other in enumerate(images) if other is one)
                np.testing.assert_allclose(head, alone[place], atol=1e-3 if exact else 1)


def test_an_image_in_a_square_has_the_boxes_of_the_image(model: TorchEngine, bus: bytes) -> None:
    network_input, _ = image.letterbox(image.decode(bus, 10**7), 640)
    assert network_input.shape == (640, 480, 3)
    ((own,),), ((squared,),) = model([network_input]), OnSquares(model, 640)([network_input])
    ((centred,),) = model(squares(bus))
    np.testing.assert_allclose(squared[0], centred[0] - 80, atol=1e-3)
    np.testing.assert_array_equal(squared[1:], centred[1:])
    best = own[:, own[4].argmax()]
    same = squared[:, squared[5] == best[5]].T
    nearest = min(same, key=lambda column: np.abs(column[:4] - best[:4]).max())
    np.testing.assert_allclose(nearest, best, atol=16, err_msg="the grey beside it changes little")


@pytest.mark.parametrize("engine", ["torch", "float32", "bfloat16"])
def test_alone_and_in_a_batch_the_answer_is_the_same(engine: str, path: Path, bus: bytes, zidane: bytes) -> None:
    read = read_checkpoint(path)
    network = TorchEngine(read) if engine == "torch" else compiled(read, engine)
    batch = squares(bus, zidane, bus)
    alone = np.array([network(one[None])[0][0] for one in batch])
    together = np.array([head for (head,) in network(batch)])
    # Boxes to 0.01 pixels and scores to 0.0001: the sums of a batched convolution may run in another order.
    np.testing.assert_allclose(together[:, 4], alone[:, 4], atol=1e-4)
    sure = alone[:, 4] >= 0.01
    np.testing.assert_allclose(together.transpose(0, 2, 1)[sure], alone.transpose(0, 2, 1)[sure], atol=0.01)


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        pytest.param("flags : avx2 avx512_vnni avx512_bf16 amx_bf16 amx_tile", "bfloat16", id="AMX"),
        pytest.param("flags : avx2 avx512_vnni avx512_bf16", "int8", id="bfloat16 without AMX is slower than float32"),
        pytest.param("flags : avx2 avx_vnni", "int8", id="VNNI without AVX-512"),
        pytest.param("flags : avx2", "float32", id="sums of bytes overflow"),
        pytest.param(None, "float32", id="not Linux"),
    ],
)
def test_the_precision_that_is_fastest_here(
    flags: str | None, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if flags:
        cpuinfo.write_text(flags)
    monkeypatch.setattr(openvino, "CPUINFO", cpuinfo)
    assert openvino.chosen("auto") == precision
    assert openvino.chosen("float32") == "float32"


def test_int8_where_it_would_be_wrong_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "CPUINFO", tmp_path / "none")
    with pytest.raises(RuntimeError, match="needs a CPU with VNNI"):
        openvino.chosen("int8")
