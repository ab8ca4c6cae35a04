"""From an address to weights that may serve: fetch → verify → load → compile → warm → golden set. Knows nothing of Ray.

Each step can refuse, with its own reason; what was live before is not touched.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serve_app import golden
from serve_app.errors import DamagedWeights, NotFinite, WrongWeights
from serve_app.store import SCHEME, Store
from serve_app.weights import BUNDLED, ROOT, Pinned, Weights, local

if TYPE_CHECKING:
    from serve_app.model import DetectionModel, Model
    from serve_app.settings import AppSettings

logger = logging.getLogger("ray.serve")
Content = tuple[Pinned, memoryview]
Fetch = Callable[[str], Content]


class Loaded:
    """Weights that may serve: what they are, their network, and how long each step took, in seconds."""

    def __init__(self, pinned: Pinned, model: Model, seconds: dict[str, float]) -> None:
        self.pinned, self.model, self.seconds = pinned, model, seconds
        bundled = pinned.uri == str(BUNDLED)
        self.weights = Weights(pinned.name, pinned.sha256, model.class_names, bundled, pinned.version)
        self._warmed: set[int] = set()

    def warm(self, batch_sizes: Iterable[int], size: int) -> None:
        """Runs a batch of each size that has not run yet, squares of `size` pixels. Raises NotFinite."""
        for n in set(batch_sizes) - self._warmed:
            if not np.isfinite(self.model(np.zeros((n, size, size, 3), np.uint8))).all():
                raise NotFinite(f"{self.pinned.uri} answers with numbers that are not finite")
            self._warmed.add(n)


def pin(uri: str, settings: AppSettings) -> Pinned:
    """What a `weights` setting means, exactly; of S3 only the manifest is read. Raises WeightsError."""
    return Store(settings.s3_endpoint_url).pin(uri) if uri.startswith(SCHEME) else local(uri)


def content(pinned: Pinned, settings: AppSettings) -> memoryview:
    """The pinned bytes, by way of this machine's cache where they are in S3. Raises WeightsError."""
    s3 = pinned.uri.startswith(SCHEME)
    path = Store(settings.s3_endpoint_url).fetch(pinned, ROOT / settings.weights_cache) if s3 else Path(pinned.uri)
    return memoryview(path.read_bytes())


def fetch(uri: str, settings: AppSettings) -> Content:
    """`pin` and `content` in one."""
    pinned = pin(uri, settings)
    return pinned, content(pinned, settings)


def load(
    uri: str,
    get: Fetch,
    *,
    settings: AppSettings,
    size: int,
    device: str,
    batch_sizes: set[int],
    old: Loaded | None = None,
) -> Loaded:
    """All steps. `old`, when there is one, is what the golden set's speed limit compares with. Raises WeightsError."""
    seconds: dict[str, float] = {}
    with timed("import", seconds):
        from serve_app.model import read_checkpoint  # torch and Ultralytics, only where a network runs
    with timed("fetch", seconds):
        pinned, found = get(uri)
    with timed("verify", seconds):
        verify(pinned, found, size)
    with timed("load", seconds):
        network = read_checkpoint(io.BytesIO(found), pinned.uri)
    with timed("compile", seconds):
        model = engine(network, pinned.sha256, settings, size, device)
    manifest = pinned.manifest
    if manifest and manifest.class_names != model.class_names:
        raise WrongWeights(f"{pinned.uri} knows other classes than its manifest says: {model.class_names}")
    loaded = Loaded(pinned, model, seconds)
    with timed("warm", seconds):
        loaded.warm(batch_sizes, size)
    with timed("golden", seconds):
        if manifest and manifest.golden:
            golden.check(manifest.golden, model, model.class_names, size)
            if old:
                golden.check_speed(manifest.golden, model, old.model, size)
    stages = ", ".join(f"{stage} {took:.2f} s" for stage, took in seconds.items())
    kind = "bundled model" if loaded.weights.bundled else "weights"
    logger.info("%s %s (%s) on %s: %s", kind, pinned.uri, pinned.sha256[:12], device, stages)
    return loaded


def engine(network: DetectionModel, sha256: str, settings: AppSettings, size: int, device: str) -> Model:
    """The network, ready to run: CUDA on a GPU, else OpenVINO, or plain PyTorch where that is asked for."""
    from serve_app.model import TorchModel, names_of

    if device == "cuda":
        from serve_app.cuda_model import CudaModel

        return CudaModel(network, size)
    if settings.engine == "torch":
        return TorchModel(network, settings.cpu_threads)
    from serve_app import openvino_model, quantised

    graph = openvino_model.graph(network, size)
    if settings.precision == "int8":
        graph = quantised.quantised(graph, sha256, size, ROOT / settings.weights_cache)
    return openvino_model.OpenVinoModel(graph, names_of(network), settings.precision, settings.cpu_threads)


def verify(pinned: Pinned, content: memoryview, size: int) -> None:
    """Raises DamagedWeights when the bytes are not the pinned ones, WrongWeights when their square is another."""
    if hashlib.sha256(content).hexdigest() != pinned.sha256:
        raise DamagedWeights(f"{pinned.uri}: the bytes are not those that were pinned")
    if pinned.manifest and pinned.manifest.image_size != size:
        square = pinned.manifest.image_size
        raise WrongWeights(
            f"{pinned.uri} is for {square} px and this service runs at {size}: set `image_size`, redeploy"
        )


@contextmanager
def timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    """Adds what it took."""
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
