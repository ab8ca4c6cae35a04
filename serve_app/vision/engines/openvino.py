"""The OpenVINO engine, for CPUs.

It uses one stream over all threads. That is fastest for one image at a time, and for two at a time it is as fast as two
streams.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

# Without this, converting a network sends usage data to OpenVINO's maker.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino as ov
from numpy.typing import NDArray
from openvino.preprocess import PrePostProcessor

from serve_app.vision.engines.pytorch import traced

if TYPE_CHECKING:
    from serve_app.settings import Precision
    from serve_app.vision.engines.checkpoint import DetectionModel

CPUINFO = Path("/proc/cpuinfo")
HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # for int8: the precision of the layers that stay float


def has_amx() -> bool:
    """Whether the CPU has AMX, which multiplies tiles of bfloat16 twice as fast as float32.

    OpenVINO also reports bfloat16 for CPUs with avx512_bf16 alone, but there it runs at 0.64 times the rate of float32.
    """
    return CPUINFO.exists() and "amx_bf16" in CPUINFO.read_text()


class OpenVinoEngine:
    """See `Engine`. Several threads may call it at a time.

    Precision `auto` is bfloat16 on CPUs with AMX and float32 on others. For `int8`, `graph` must be quantised already.
    """

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
            "ENABLE_CPU_PINNING": False,  # with pinning, all replicas would pin to the same cores
        }
        self._compiled = core.compile_model(graph, "CPU", options)
        self._idle_requests: SimpleQueue[Any] = SimpleQueue()

    def __call__(self, inputs_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Engine`."""
        try:
            request = self._idle_requests.get_nowait()
        except Empty:
            request = self._compiled.create_infer_request()
        heads: NDArray[np.float32] = request.infer([inputs_nhwc], share_inputs=True)[0]
        self._idle_requests.put(request)
        return heads


def graph(network: DetectionModel, size: int) -> Any:  # noqa: ANN401 - OpenVINO's own type
    """The network as an OpenVINO model that takes uint8 (N, size, size, 3); it scales to 0..1 itself. See `Engine`."""
    model = ov.convert_model(traced(network, size), input=[-1, 3, size, size])
    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(ov.Type.f32).scale(255.0)
    return steps.build()
