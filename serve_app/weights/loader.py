"""Takes an address to weights that may serve: fetch → verify → load → int8 → compile → warm → golden set.

The step `int8` decides where a CPU is fastest in it. On a GPU the precision check runs too.

Each step can refuse the weights with its own reason. The live weights are not touched. Must not know Ray.
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

from serve_app.errors import DamagedWeights, GoldenFailed, NotFinite, WrongWeights
from serve_app.settings import LARGEST_SIZE, ROOT
from serve_app.vision import sample_photos
from serve_app.vision.engines.engine import OnSquares, build, reference
from serve_app.weights import golden_set, precision, quantisation
from serve_app.weights.address import SCHEME
from serve_app.weights.identity import BUNDLED, Pinned, Weights, pin_file
from serve_app.weights.quantisation import Refused
from serve_app.weights.store import Store

if TYPE_CHECKING:
    from serve_app.settings import AppSettings
    from serve_app.vision.engines.engine import Engine
    from serve_app.vision.engines.int8 import Ranges

logger = logging.getLogger("ray.serve")
Content = tuple[Pinned, memoryview]
Fetch = Callable[[str], Content]


class Loaded:
    """Weights that passed every check: their identity, their engine, and the time of each step in seconds.

    `int8_refused` says why they do not run in int8, where it would be the fastest.
    """

    def __init__(self, pinned: Pinned, engine: Engine, seconds: dict[str, float], int8_refused: Refused | None) -> None:
        self.pinned, self.engine, self.seconds, self.int8_refused = pinned, engine, seconds, int8_refused
        bundled = pinned.uri == str(BUNDLED)
        self.weights = Weights(
            pinned.name,
            pinned.sha256,
            engine.class_names,
            bundled,
            pinned.version,
            pinned.stated_size,
            engine.task.name,
            engine.precision,
        )
        self._warmed: set[int] = set()

    def warm(self, batch_sizes: Iterable[int], size: int) -> None:
        """Runs a black batch (N, size, size, 3) of each size that has not run yet. Raises NotFinite, OutOfMemory."""
        for n in sorted(set(batch_sizes) - self._warmed, reverse=True):  # a GPU prepares the smaller with the largest
            outputs = self.engine(np.zeros((n, size, size, 3), np.uint8))
            if not all(np.isfinite(array).all() for output in outputs for array in output):
                raise NotFinite(f"{self.pinned.uri}: the network outputs numbers that are not finite")
            self._warmed.add(n)


def pin(uri: str, settings: AppSettings) -> Pinned:
    """Resolves a `weights` setting to exact bytes. From S3 it reads only the manifest. Raises WeightsError."""
    return Store(settings.s3_endpoint_url).pin(uri) if uri.startswith(SCHEME) else pin_file(uri)


def content(pinned: Pinned, settings: AppSettings) -> memoryview:
    """The pinned bytes. Bytes from S3 go through the cache on this machine. Raises WeightsError."""
    s3 = pinned.uri.startswith(SCHEME)
    path = Store(settings.s3_endpoint_url).fetch(pinned, ROOT / settings.weights_cache) if s3 else Path(pinned.uri)
    return memoryview(path.read_bytes())


def fetch(uri: str, settings: AppSettings) -> Content:
    """`pin`, then `content`. Raises WeightsError."""
    pinned = pin(uri, settings)
    return pinned, content(pinned, settings)


def load(
    uri: str,
    get: Fetch,
    *,
    settings: AppSettings,
    size: int,
    task: str,
    device: str,
    batch_sizes: set[int],
    old: Loaded | None = None,
) -> Loaded:
    """Runs all steps.

    `get` returns the pinned identity and the bytes of `uri`. `size` is the side of the network input in pixels, `task`
    the name of the service's task. With `old`, the golden set's speed limit compares the new weights with it. Raises
    WeightsError.
    """
    seconds: dict[str, float] = {}
    with timed("import", seconds):
        # Imports torch and Ultralytics, so only where a network runs.
        from serve_app.vision.engines.checkpoint import read_checkpoint, task_of
    with timed("fetch", seconds):
        pinned, found = get(uri)
    with timed("verify", seconds):
        verify(pinned, found, size)
    with timed("load", seconds):
        network = read_checkpoint(io.BytesIO(found), pinned.uri)
        if (own := task_of(network).name) != task:
            raise WrongWeights(
                f"{pinned.uri} is for the task {own}, this service has {task}: set `weights` under `args` and redeploy"
            )
    with timed("int8", seconds):
        ranges, refused = quantisation.chosen(network, pinned, size, settings, device)
    manifest = pinned.manifest
    golden = manifest.golden if manifest else None

    def warm(ranges: Ranges | None, refused: Refused | None) -> Loaded:
        with timed("compile", seconds):
            engine = build(network, settings, size, device, ranges)
        if manifest and manifest.class_names != engine.class_names:
            raise WrongWeights(f"{pinned.uri} has other classes than its manifest says: {engine.class_names}")
        made = Loaded(pinned, engine, seconds, refused)
        with timed("warm", seconds):
            made.warm(batch_sizes, size)
        with timed("golden", seconds):
            if golden:
                golden_set.check(golden, engine, size)
        return made

    try:
        loaded = warm(ranges, refused)
    except GoldenFailed as error:
        if ranges is None:
            raise
        loaded = warm(None, Refused("golden", str(error)))
    if loaded.int8_refused:
        logger.warning("%s runs in float32, not in int8: %s", pinned.uri, loaded.int8_refused.detail)
    with timed("golden", seconds):
        if device == "cuda":
            photos = [p.jpeg for p in golden.photos] if golden else [p.read_bytes() for p in sample_photos.files()]
            exact = OnSquares(reference(read_checkpoint(io.BytesIO(found), pinned.uri), settings), size)
            precision.check(photos, loaded.engine, exact, size)
        if golden and old:
            golden_set.check_speed(golden, loaded.engine, old.engine, size)
    steps = ", ".join(f"{step} {took:.2f} s" for step, took in seconds.items())
    kind, used = "bundled model" if loaded.weights.bundled else "weights", loaded.engine.precision
    logger.info("%s %s (%s) on %s in %s: %s", kind, pinned.uri, pinned.sha256[:12], device, used, steps)
    return loaded


def verify(pinned: Pinned, content: memoryview, size: int) -> None:
    """Raises DamagedWeights for bytes that are not the pinned ones, WrongWeights for another size than the manifest's.

    Logs a warning when only the training had another size. `/v1/models` shows both.
    """
    if hashlib.sha256(content).hexdigest() != pinned.sha256:
        raise DamagedWeights(f"{pinned.uri}: the sha256 of the bytes is not the pinned one")
    if pinned.manifest and pinned.manifest.image_size != size:
        wanted = pinned.manifest.image_size
        raise WrongWeights(
            f"{pinned.uri} is for {wanted} px, but this service runs at {size} px: set `image_size` and redeploy"
        )
    if size > LARGEST_SIZE:
        raise WrongWeights(
            f"{pinned.uri} is for {size} px, the service runs at {LARGEST_SIZE} at most: set `image_size`"
        )
    if pinned.trained_size not in (None, size):
        logger.warning("%s was trained at %s px and runs at %s px", pinned.uri, pinned.trained_size, size)


@contextmanager
def timed(step: str, seconds: dict[str, float]) -> Iterator[None]:
    """Adds the time of the block to `step`, in seconds."""
    started = time.perf_counter()
    yield
    seconds[step] = seconds.get(step, 0) + time.perf_counter() - started
