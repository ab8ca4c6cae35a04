"""The network in OpenVINO: the engine for CPUs.

One stream over all threads: the fastest for one image, and at two at a time as fast as a stream for each.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # else converting reports to its maker
import openvino as ov
from numpy.typing import NDArray
from openvino.preprocess import PrePostProcessor

from serve_app.model import traced

if TYPE_CHECKING:
    from serve_app.model import DetectionModel
    from serve_app.settings import Precision

CPUINFO = Path("/proc/cpuinfo")
HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # of int8, what is not int8


def has_amx() -> bool:
    """Whether the CPU multiplies tiles of bfloat16, twice as fast as float32.

    One with avx512_bf16 alone has bfloat16 too, by OpenVINO's account, and runs it at 0.64 of float32's rate.
    """
    return CPUINFO.exists() and "amx_bf16" in CPUINFO.read_text()


class OpenVinoModel:
    """See `model.Model`. Precision `auto` is bfloat16 where AMX has it, else float32; int8 is in the graph."""

    device = "cpu"

    def __init__(
        self,
        graph: Any,  # noqa: ANN401 - OpenVINO's own type
        class_names: tuple[str, ...],
        precision: Precision = "auto",
        cpu_threads: int | None = None,
    ) -> None:
        self.class_names = class_names
        core = ov.Core()
        if precision == "auto":
            precision = "bfloat16" if has_amx() else "float32"
        self.precision = precision
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": cpu_threads or os.cpu_count() or 1,
            "ENABLE_CPU_PINNING": False,  # replicas that pin would all pin to the same cores
        }
        self._compiled = core.compile_model(graph, "CPU", options)
        self._idle: SimpleQueue[Any] = SimpleQueue()

    def __call__(self, squares_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See Model."""
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._compiled.create_infer_request()
        heads: NDArray[np.float32] = request.infer([squares_nhwc], share_inputs=True)[0]
        self._idle.put(request)
        return heads


def graph(network: DetectionModel, size: int) -> Any:  # noqa: ANN401 - OpenVINO's own type
    """uint8 (N, S, S, 3) in, the scaling to 0..1 a part of the graph."""
    model = ov.convert_model(traced(network, size), input=[-1, 3, size, size])
    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(ov.Type.f32).scale(255.0)
    return steps.build()
