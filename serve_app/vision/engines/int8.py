"""Lays int8 into a network's convolutions, for the OpenVINO engine.

Every tensor that enters one gets 256 steps between the least and the largest value that it has in calibration, the
weights get 255 steps for each output channel, and OpenVINO multiplies bytes. Tensors that meet in a Concat share their
steps, so that joining them moves bytes. Must not know files.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as in openvino.py
import openvino as ov
from openvino import opset13 as ops

from serve_app.errors import DamagedWeights

Ranges = dict[str, tuple[float, float]]  # least and largest value by `groups`
STEPS = 256
# They move or select values, which keep their steps.
MOVES = {"Concat", "Split", "VariadicSplit", "MaxPool", "Interpolate", "Reshape", "Transpose", "Slice", "StridedSlice"}
# The first layers, down to a quarter of the input's size, stay float: their few channels hold the largest outliers. So
# do grouped convolutions, as in YOLO11's head, which int8 makes no faster. With both in int8, the scores of five
# networks differed 1.05 to 3.7 times as much from float32 (root mean square), and they were 0 to 10 % faster.
FINEST = 4  # pixels of the input for one of the layer's output
PROBE = 320  # side in pixels of the input on which sizes are compared


def convolutions(graph: Any) -> list[Any]:  # noqa: ANN401 - OpenVINO's own type, as below
    """The convolutions to quantise. Left out is also the head's, which computes boxes and has no trained weights."""
    probe = graph.clone()
    probe.reshape([1, PROBE, PROBE, 3])
    sides = {node.get_friendly_name(): node.get_output_shape(0)[2] for node in of_kind(probe, "Convolution")}
    return [
        node
        for node in of_kind(graph, "Convolution")
        if ".dfl." not in (name := node.get_friendly_name()) and PROBE / sides[name] > FINEST
    ]


def of_kind(graph: Any, kind: str) -> list[Any]:  # noqa: ANN401
    """The operations of one kind, in order."""
    return [node for node in graph.get_ordered_ops() if node.get_type_name() == kind]


def sources(tensor: Any) -> list[Any]:  # noqa: ANN401
    """The tensors that compute the values of `tensor`."""
    node = tensor.get_node()
    if node.get_type_name() not in MOVES:
        return [tensor]
    inputs = node.input_values() if node.get_type_name() == "Concat" else node.input_values()[:1]
    return [source for one in inputs for source in sources(one)]


def groups(graph: Any) -> dict[str, list[Any]]:  # noqa: ANN401
    """The tensors to quantise, those with common steps together, by the place of a convolution that takes them."""
    made: list[tuple[set[str], dict[str, Any]]] = []
    for node in convolutions(graph):
        place = node.get_friendly_name().partition("/")[0].removeprefix("__module.")
        places, tensors = {place}, {source.get_node().get_name(): source for source in sources(node.input_value(0))}
        for other in [other for other in made if other[1].keys() & tensors.keys()]:
            made.remove(other)
            places |= other[0]
            tensors |= other[1]
        made.append((places, tensors))
    return {min(places): list(tensors.values()) for places, tensors in made}


def ranges(graph: Any, images: Iterable[NDArray[np.uint8]], options: dict[str, Any]) -> Ranges:  # noqa: ANN401
    """The ranges over network inputs, uint8 (1, H, W, 3) each; `options` are those of OpenVINO.

    Means over the images instead, as NNCF takes them, cut off what is rare: they were worse on each of five networks.
    """
    graph = graph.clone()
    axes = [0, 1, 2, 3]
    places, extremes = [], []
    for place, tensors in groups(graph).items():
        for tensor in tensors:
            places.append(place)
            extremes += [ops.result(ops.reduce_min(tensor, axes)), ops.result(ops.reduce_max(tensor, axes))]
    model = ov.Model(extremes, graph.get_parameters(), "ranges")
    measure = ov.Core().compile_model(model, "CPU", options)
    found = np.array([[float(value) for value in measure(image).values()] for image in images])
    made: Ranges = {}
    for place, low, high in zip(places, found[:, ::2].min(0).tolist(), found[:, 1::2].max(0).tolist(), strict=True):
        least, most = made.get(place, (low, high))
        made[place] = min(least, low), max(most, high)
    return made


def quantised(graph: Any, ranges: Ranges) -> Any:  # noqa: ANN401
    """The graph with int8 convolutions. Raises DamagedWeights when the ranges are another network's."""
    graph = graph.clone()
    if missing := groups(graph).keys() - ranges.keys():
        raise DamagedWeights(f"int8 has no ranges for {min(missing)}: they are of another network")
    for node in convolutions(graph):
        node.input(1).replace_source_output(rounded_weights(node.input_value(1)).output(0))
    for place, tensors in groups(graph).items():
        low, high = grid(*ranges[place])
        for tensor in tensors:
            targets = tensor.get_target_inputs()
            rounded = ops.fake_quantize(tensor, low, high, low, high, STEPS)
            for target in targets:
                target.replace_source_output(rounded.output(0))
    graph.validate_nodes_and_infer_types()
    return graph


def rounded_weights(tensor: Any) -> Any:  # noqa: ANN401
    """Weights (O, I, h, w) with 255 steps for each output channel, as many below zero as above it."""
    node = tensor.get_node()
    values = (node if node.get_type_name() == "Constant" else node.input_value(0).get_node()).data.astype(np.float32)
    most = np.abs(values).max((1, 2, 3), keepdims=True).clip(1e-8)
    return ops.fake_quantize(ops.constant(values), -most, most, -most, most, STEPS - 1)


def grid(low: float, high: float) -> tuple[np.float32, np.float32]:
    """The range from `low` to `high`, moved so that zero, with which convolutions pad, is one of its steps."""
    low, high = min(low, 0.0), max(high, 1e-6)
    step = (high - low) / (STEPS - 1)
    below = round(-low / step)
    return np.float32(-below * step), np.float32((STEPS - 1 - below) * step)
