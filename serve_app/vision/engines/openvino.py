"""The OpenVINO engine, for CPUs.

An image that is alone in the engine has all threads. Others run two at a time, each with half of the threads: together
they are faster so, because each waits less for its own threads. Larger batches would not be faster, and OpenVINO keeps
memory for each shape that it has seen.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
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
    from serve_app.vision.engines.engine import Images
    from serve_app.vision.engines.layers import Network
    from serve_app.vision.tasks.task import Output, Task

CPUINFO = Path("/proc/cpuinfo")
STREAMS = 2  # as many batches as the Detector runs at a time
HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # for int8: the precision of the layers that stay float


def features() -> set[str]:
    """What the CPU can, in Linux's words; nothing on other systems."""
    return set(CPUINFO.read_text().split()) if CPUINFO.exists() else set()


def has_vnni() -> bool:
    """Whether the CPU adds up products of bytes without overflow."""
    return bool(features() & {"avx512_vnni", "avx_vnni"})


def chosen(precision: Precision) -> Precision:
    """What `auto` means on this CPU. Raises RuntimeError for the setting `int8` on a CPU without VNNI.

    With AMX it is `bfloat16`: AMX multiplies that twice as fast as float32, and as fast as int8. CPUs with avx512_bf16
    and no AMX run bfloat16 at 0.64 times the rate of float32, although OpenVINO lists it for them.
    With VNNI it is `int8`, at twice the rate of float32. On other CPUs it is `float32`: without VNNI, sums of two
    products of bytes overflow (mAP50-95 0.334 instead of 0.430).
    """
    if precision == "int8" and not has_vnni():
        raise RuntimeError("precision int8 needs a CPU with VNNI, which this one has not: set `precision: auto`")
    if precision != "auto":
        return precision
    if "amx_bf16" in features():
        return "bfloat16"
    return "int8" if has_vnni() else "float32"


def options(precision: Precision, cpu_threads: int | None) -> dict[str, Any]:
    """OpenVINO's options, with all cores when `cpu_threads` is not set."""
    return {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "INFERENCE_NUM_THREADS": cpu_threads or os.cpu_count() or 1,
        "ENABLE_CPU_PINNING": False,  # with pinning, all replicas would pin to the same cores
    }


class OpenVinoEngine:
    """See `Engine`. Several threads may call it at a time.

    For `int8`, `graph` must be quantised already.
    """

    device = "cpu"

    def __init__(
        self,
        graph: Any,  # noqa: ANN401 - OpenVINO's own type
        class_names: tuple[str, ...],
        task: Task,
        precision: Precision,
        cpu_threads: int | None = None,
    ) -> None:
        self.class_names, self.task = class_names, task
        core = ov.Core()
        self.precision: str = precision
        settings = options(precision, cpu_threads)
        self._alone, self._beside = (
            core.compile_model(
                graph, "CPU", settings | {"NUM_STREAMS": min(streams, settings["INFERENCE_NUM_THREADS"])}
            )
            for streams in (1, STREAMS)
        )
        self._idle: SimpleQueue[ov.AsyncInferQueue] = SimpleQueue()
        self._idle_alone: SimpleQueue[ov.InferRequest] = SimpleQueue()
        self._running, self._counting = 0, Lock()

    def __call__(self, images: Images) -> list[Output]:
        """See `Engine`."""
        with self._counting:
            alone = not self._running and len(images) == 1
            self._running += 1
        try:
            return [self._infer(images[0])] if alone else self._infer_beside(images)
        finally:
            with self._counting:
                self._running -= 1

    def _infer(self, image: NDArray[np.uint8]) -> Output:
        request = taken(self._idle_alone) or self._alone.create_infer_request()
        request.infer([image[None]], share_inputs=True)
        output = copied(request)
        self._idle_alone.put(request)
        return output

    def _infer_beside(self, images: Images) -> list[Output]:
        requests = taken(self._idle) or ov.AsyncInferQueue(self._beside, STREAMS)
        outputs: dict[int, Output] = {}
        requests.set_callback(lambda request, place: outputs.update({place: copied(request)}))
        for place, image in enumerate(images):
            requests.start_async([image[None]], place, share_inputs=True)
        requests.wait_all()  # raises RuntimeError if one has failed
        self._idle.put(requests)
        return [outputs[place] for place in range(len(images))]


def copied(request: ov.InferRequest) -> Output:
    """The outputs of one image, which the next one would overwrite."""
    return tuple(tensor.data[0].copy() for tensor in request.output_tensors)


def taken(idle: SimpleQueue[Any]) -> Any:  # noqa: ANN401 - whatever the queue holds
    """One of the idle, None if there is none."""
    try:
        return idle.get_nowait()
    except Empty:
        return None


def graph(network: Network) -> Any:  # noqa: ANN401 - OpenVINO's own type
    """The network as an OpenVINO model that takes uint8 (1, H, W, 3); it scales to 0..1 itself. See `Engine`."""
    model = ov.convert_model(traced(network), input=[1, 3, -1, -1])
    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(ov.Type.f32).scale(255.0)
    return steps.build()
