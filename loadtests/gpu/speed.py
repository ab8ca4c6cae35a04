"""The parts that measure speed. Each returns what it found, as JSON."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from loadtests.gpu.plan import MAX_PIXELS, Found, Plan, median_ms, per_second, synchronize
from loadtests.photo_mix import resized
from serve_app.vision import boxes, image, sample_photos
from serve_app.vision.engines.cuda import DTYPES, CudaEngine, batch_sizes
from serve_app.vision.tasks.task import Output


def machine(plan: Plan) -> Found:
    """What this machine is, and how fast it copies network inputs."""
    one = plan.size * plan.size * 3
    shape = (plan.most, plan.size, plan.size, 3)
    on_gpu, pinned = plan.stream().buffers(shape, torch.uint8)
    photos, pageable = plan.inputs(plan.most), torch.zeros(shape, dtype=torch.uint8)

    def to_gpu(source: torch.Tensor) -> None:
        on_gpu.copy_(source, non_blocking=True)
        synchronize(plan)

    def fill() -> None:
        for place, photo in zip(pinned.numpy(), photos, strict=True):
            place[...] = photo

    gb = one * plan.most / 1e6  # divided by milliseconds: GB/s
    return {
        "gpu": "none: a dry run" if plan.dry else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "free_mb": plan.stream.free_bytes() >> 20,
        "pinned_gb_s": gb / median_ms(lambda: to_gpu(pinned), plan.seconds),
        "pageable_gb_s": gb / median_ms(lambda: to_gpu(pageable), plan.seconds),
        "into_pinned_gb_s": gb / median_ms(fill, plan.seconds),
    }


@torch.inference_mode()
def graph_ms(plan: Plan, engine: CudaEngine, n: int) -> float:
    """Milliseconds of the graph of batch size n, from replays without a pause."""
    lane = engine.idle.get()
    times = 1 if plan.dry else max(int(20 / (1 + n / 16)), 4)

    def once() -> None:
        with lane.stream.work():
            for _ in range(times):
                lane.replay[n]()

    took = median_ms(once, plan.seconds) / times
    engine.idle.put(lane)
    return took


@torch.inference_mode()
def eager_ms(plan: Plan, engine: CudaEngine, n: int) -> float:
    """Milliseconds of a batch of n without a graph."""
    lane = engine.idle.get()

    def once() -> None:
        with lane.stream.work():
            lane.forward(n)

    took = median_ms(once, plan.seconds)
    engine.idle.put(lane)
    return took


def sweep(plan: Plan) -> Found:
    """Each batch size: the graph alone, the same without a graph, the engine with one to three callers, and NMS."""
    engine, rows = plan.engine(), []
    photos = plan.inputs(plan.most)
    engine(photos)
    for n in reversed(batch_sizes(plan.most)):
        batch = photos[:n]
        call: Callable[[], object] = lambda batch=batch: engine(batch)  # type: ignore[misc]  # noqa: E731
        outputs = engine(batch)
        spent = time.process_time()
        rates = [n * per_second([call] * callers, plan.seconds) for callers in (1, 2, 3)]
        spent = (time.process_time() - spent) / (sum(rates) * plan.seconds)
        rows.append(
            {
                "batch": n,
                "graph_ms": graph_ms(plan, engine, n),
                "eager_ms": eager_ms(plan, engine, n),
                "engine_ms": median_ms(call, plan.seconds),
                "img_s": rates,
                "cpu_ms": 1000 * spent,  # of an image, in the engine's own process
                "nms_ms": median_ms(lambda outputs=outputs: suppress(outputs), plan.seconds / 4) / n,  # type: ignore[misc]
            }
        )
    return {"rows": rows}


def suppress(outputs: Sequence[Output]) -> None:
    """Selects the candidates of each image, and runs NMS on them."""
    for head, *_ in outputs:
        boxes.non_max_suppression(boxes.candidates(head, 0.25), 0.7, 300)


def variants(plan: Plan) -> Found:
    """The graph's time in other precisions, and with the kernels that cuDNN finds by trying."""
    found, photos = {}, plan.inputs(plan.most)
    for precision in DTYPES:
        for benchmark in (False, True):
            torch.backends.cudnn.benchmark = benchmark
            engine, started = plan.engine(precision), time.perf_counter()
            engine(photos)
            took = time.perf_counter() - started
            ms = {str(n): graph_ms(plan, engine, n) for n in batch_sizes(plan.most) if n & (n - 1) == 0}
            found[precision + (", cudnn.benchmark" if benchmark else "")] = {"capture_s": took, "graph_ms": ms}
    torch.backends.cudnn.benchmark = False
    return found


def decode(plan: Plan) -> Found:
    """JPEG to network input on the CPU, in one thread and in many, and to pixels on the GPU; also with 12 MP."""
    found: Found = {}
    large = resized(sample_photos.bus(), 0.3 if plan.dry else 3.7)  # as in `make bench`
    for name, photos in (("photos", plan.encoded[:64]), ("12 MP", [large] * 16)):

        def prepare_all(photos: list[bytes] = photos, pool: ThreadPoolExecutor | None = None) -> None:
            list((pool.map if pool else map)(lambda data: image.prepare(data, plan.size, MAX_PIXELS), photos))

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found[name] = {
                "kb": sum(map(len, photos)) / len(photos) / 1000,
                "one_thread_img_s": 1000 * len(photos) / median_ms(prepare_all, plan.seconds),
                "all_threads_img_s": 1000 * len(photos) / median_ms(lambda: prepare_all(pool=pool), plan.seconds),
                "gpu_img_s": gpu_decode(plan, photos),
            }
    return found


def gpu_decode(plan: Plan, photos: list[bytes]) -> float | str:
    """Images a second of nvJPEG, without scaling; or why there is none."""
    if plan.dry:
        return "a dry run has no GPU"
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except Exception as error:  # noqa: BLE001 - a torchvision that does not fit PyTorch raises RuntimeError
        return f"no torchvision: {error}"
    content = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in photos]

    def once() -> None:
        decode_jpeg(content, mode=ImageReadMode.RGB, device="cuda")
        torch.cuda.synchronize()

    try:
        return 1000 * len(photos) / median_ms(once, plan.seconds)
    except RuntimeError as error:
        return f"failed: {error}"
