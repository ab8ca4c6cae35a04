"""int8 in the graph: which layers, on what steps, and that an answer stays what it is in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loadtests.benchmarks.random_networks import network as random_network
from serve_app.errors import DamagedWeights
from serve_app.vision import calibration
from serve_app.vision.engines import int8, openvino
from serve_app.vision.engines.checkpoint import names_of, read_checkpoint, task_of
from serve_app.vision.engines.openvino import OpenVinoEngine, graph
from serve_app.vision.image import GREY
from serve_app.weights import golden_set
from serve_app.weights.identity import BUNDLED

SIZE, OPTIONS = 416, openvino.options("float32", None)
vnni = pytest.mark.skipif(not openvino.has_vnni(), reason="int8 overflows on CPUs without VNNI")


@pytest.fixture(scope="module")
def images(bus: bytes, zidane: bytes) -> list[np.ndarray]:
    return calibration.images([bus, zidane], SIZE)


@pytest.fixture(scope="module")
def plain() -> Any:
    return graph(read_checkpoint(BUNDLED))


@pytest.fixture(scope="module")
def ranges(plain: Any, images: list[np.ndarray]) -> int8.Ranges:
    return int8.ranges(plain, (image[None] for image in images), OPTIONS)


def test_calibration_images_are_always_the_same_ones(images: list[np.ndarray], bus: bytes, zidane: bytes) -> None:
    again = calibration.images([bus, zidane], SIZE)
    assert len(images) == calibration.LEAST
    assert {image.shape for image in images} == {(SIZE, SIZE, 3)}
    np.testing.assert_array_equal(images, again)
    assert len({image.tobytes() for image in images}) == len(images)


def test_each_photo_has_its_part(bus: bytes, zidane: bytes) -> None:
    assert len(calibration.images([bus, zidane] * 40, 32)) == 80
    assert len(calibration.images([bus, zidane] * 200, 32)) == calibration.MOST


def test_classifiers_see_the_middle_of_a_part(bus: bytes) -> None:
    whole, middle = (calibration.images([bus], 64, crops=crops)[0] for crops in (False, True))
    assert (whole[:, 0] == GREY).all(), "the bus is higher than wide, so grey is beside it"
    assert not (middle[:, 0] == GREY).all()


def test_the_first_layers_and_the_boxes_stay_float(plain: Any) -> None:
    every = {node.get_friendly_name() for node in int8.of_kind(plain, "Convolution")}
    left = {name.split("/")[0] for name in every - {node.get_friendly_name() for node in int8.convolutions(plain)}}
    first = {f"__module.network.model.{i}" for i in ("0.conv", "1.conv", *(f"2.{c}.conv" for c in CONVS_OF_2))}
    assert left == first | {"__module.network.model.22.dfl.conv"}


CONVS_OF_2 = ("cv1", "cv2", "m.0.cv1", "m.0.cv2")


def test_every_other_layer_multiplies_bytes(plain: Any, ranges: int8.Ranges) -> None:
    """By OpenVINO's own account, and what joins them moves bytes, too."""
    model = openvino.ov.Core().compile_model(int8.quantised(plain, ranges), "CPU", {"PERF_COUNT": True})
    request = model.create_infer_request()
    request.infer([np.zeros((1, SIZE, SIZE, 3), np.uint8)])
    ran = [(layer.node_type, layer.exec_type.lower()) for layer in request.get_profiling_info()]
    bytes_ = [kind for kind, how in ran if how.endswith("i8")]
    assert bytes_.count("Convolution") == len(int8.convolutions(plain)) == 57
    assert bytes_.count("Concat") >= 9


def test_tensors_that_meet_have_the_same_steps(plain: Any, ranges: int8.Ranges) -> None:
    made = int8.quantised(plain, ranges)
    for concat in int8.of_kind(made, "Concat"):
        before = [int8.sources(value)[0].get_node() for value in concat.input_values()]
        if all(node.get_type_name() == "FakeQuantize" for node in before):
            assert len({tuple(node.input_value(k).get_node().data.item() for k in (1, 2)) for node in before}) == 1


def test_ranges_hold_all_that_was_seen_and_zero_is_a_step(ranges: int8.Ranges) -> None:
    for low, high in ranges.values():
        least, most = int8.grid(low, high)
        step = (most - least) / 255
        assert least - step / 2 <= low <= high <= most + step / 2
        assert -least / step == pytest.approx(round(-least / step), abs=1e-3)
    assert int8.grid(0.5, 2) == (0, 2), "zero is in every range"
    assert int8.grid(0, 0)[1] > 0


@vnni
def test_what_is_found_stays_the_same(plain: Any, ranges: int8.Ranges, bus: bytes, zidane: bytes) -> None:
    read = read_checkpoint(BUNDLED)
    exact, quick = (
        OpenVinoEngine(made, names_of(read), task_of(read), precision)
        for made, precision in ((plain, "float32"), (int8.quantised(plain, ranges), "int8"))
    )
    for photo in (bus, zidane):
        wanted = golden_set.found(exact, photo, SIZE, 0.5)
        got = golden_set.found(quick, photo, SIZE, 0.4)
        assert wanted
        for want in wanted:
            same = [o for o in got if o.name == want.name and abs(o.score - want.score) <= 0.1]
            assert max(exact.task.overlap(o.part, want.part) for o in same) >= 0.9


@vnni
def test_alone_and_in_a_batch_the_answer_is_the_same(plain: Any, ranges: int8.Ranges, images: list[np.ndarray]) -> None:
    read = read_checkpoint(BUNDLED)
    network = OpenVinoEngine(int8.quantised(plain, ranges), names_of(read), task_of(read), "int8")
    mixed = [images[0], images[1][:320], images[2][:, :256].copy()]
    for together, one in zip(network(mixed), mixed, strict=True):
        np.testing.assert_array_equal(together[0], network([one])[0][0])


def test_ranges_of_another_network_are_refused(plain: Any) -> None:
    with pytest.raises(DamagedWeights, match="another network"):
        int8.quantised(plain, {"network.model.3.conv": (0, 1)})


@pytest.mark.parametrize("name", ["yolov5n", "yolov9t", "yolov10n", "yolo12n", "yolo26n", "yolo11n-obb", "yolo26n-cls"])
def test_every_family_can_be_quantised(name: str, images: list[np.ndarray]) -> None:
    plain = graph(random_network(name))
    made = int8.quantised(plain, int8.ranges(plain, (image[None, :96, :96] for image in images[:2]), OPTIONS))
    run = openvino.ov.Core().compile_model(made, "CPU")
    assert all(np.isfinite(output).all() for output in run(images[0][None, :96, :96]).values())
    rounded = [
        n for n in int8.of_kind(made, "FakeQuantize") if n.input_value(0).get_node().get_type_name() == "Constant"
    ]
    assert len(rounded) == len(int8.convolutions(plain)) > 20
