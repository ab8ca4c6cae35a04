"""Decides whether weights run in int8: their ranges, and how far they then find what they find in float32.

Made once for each weights: `publish` puts it into the manifest, other weights have it in a file of the cache. Must not
know Ray.
"""

from __future__ import annotations

import hashlib
import logging
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt, ValidationError

from serve_app.settings import ROOT, Fraction
from serve_app.vision import calibration, sample_photos
from serve_app.vision.engines.engine import wants_int8
from serve_app.vision.image import Letterbox
from serve_app.weights.golden_set import Expected, Golden, nearest, seen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from serve_app.settings import AppSettings
    from serve_app.vision.engines.engine import Engine
    from serve_app.vision.engines.int8 import Ranges
    from serve_app.vision.engines.layers import Network
    from serve_app.weights.identity import Pinned

logger = logging.getLogger("ray.serve")
CONF, LOWER = 0.25, 0.1  # confidence of an object in float32, and the least that finds it again in int8
SAME = 0.5  # two objects of one class that overlap more are the same
# Networks within these limits had mAP50-95 within 0.012 of float32, and COCO's YOLOv8n within 0.001
# (loadtests/results/accuracy.md). Ranges that lost 0.06 and more were beyond each of the last three.
OBJECTS, MISSED, SCORE, OVERLAP = 50, 0.02, 0.03, 0.96
# Of `engines/int8.py` and of the calibration images: count up when they change, and what was kept is made again.
RULES = 1
ENOUGH = 500  # objects, after which no more images are compared: masks take up to 0.1 s each


class Refused(NamedTuple):
    """Why weights do not run in int8."""

    reason: str  # stable, for programs
    detail: str  # for people


class Quantisation(BaseModel):
    """What int8 needs to know of weights.

    `ranges` are those of `engines/int8.py`, made with `versions`. Of `objects` that float32 finds in the calibration
    images, int8 misses the fraction `missed`; for the others, `score` is the mean difference of confidence and
    `overlap` the mean overlap.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    versions: str
    ranges: dict[str, tuple[FiniteFloat, FiniteFloat]]
    objects: NonNegativeInt
    missed: Fraction
    score: Fraction
    overlap: Fraction

    @property
    def refused(self) -> Refused | None:
        """Why float32 has to serve; None if int8 may."""
        if self.objects < OBJECTS:
            detail = f"only {self.objects} objects to compare, {OBJECTS} are needed: publish with a golden set"
            return Refused("objects", detail)
        for reason, value, worse, text in (
            ("missed", self.missed, self.missed > MISSED, f"of the objects are missed, at most {MISSED}"),
            ("score", self.score, self.score > SCORE, f"is the mean difference of confidence, at most {SCORE}"),
            ("overlap", self.overlap, self.overlap < OVERLAP, f"is the mean overlap, at least {OVERLAP}"),
        ):
            if worse:
                return Refused(reason, f"{value:.3f} {text} may be")
        return None


def current() -> str:
    """The versions that the graph depends on. Another build of torch, such as CUDA's, makes no difference."""
    packages = ("openvino", "torch", "ultralytics-opencv-headless")
    return ", ".join([*(f"{name} {version(name).partition('+')[0]}" for name in packages), f"rules {RULES}"])


def chosen(
    network: Network, pinned: Pinned, size: int, settings: AppSettings, device: str
) -> tuple[Ranges | None, Refused | None]:
    """The ranges if the weights run in int8 here; else why not, if this CPU is fastest in int8."""
    if not wants_int8(settings, device):
        return None, None
    made = of(network, pinned, size, settings)
    return (None, made.refused) if made.refused else (made.ranges, None)


def of(network: Network, pinned: Pinned, size: int, settings: AppSettings) -> Quantisation:
    """The quantisation of weights at `size` pixels: that of their manifest, or of the cache, or made now in 10 s."""
    given, golden = (pinned.manifest.int8, pinned.manifest.golden) if pinned.manifest else (None, None)
    if given and given.versions == current():
        return given
    if given:
        logger.warning("calibrating int8 again: the manifest has it for %s, here is %s", given.versions, current())
    photos = hashlib.sha256(golden.model_dump_json().encode()).hexdigest()[:8] if golden else "samples"
    path = ROOT / settings.weights_cache / f"{pinned.sha256}-{size}-{photos}.int8.json"
    try:
        kept = Quantisation.model_validate_json(path.read_bytes())
        if kept.versions == current():
            return kept
    except (OSError, ValidationError):
        pass  # none yet, or one that an older version of this service has written
    made = make(network, golden, size, settings.cpu_threads)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # other replicas may write it now, too
            part = Path(folder) / path.name
            part.write_text(made.model_dump_json())
            part.replace(path)
    except OSError as error:
        logger.warning("the next start has to calibrate int8 again, because it cannot be kept: %s", error)
    return made


def for_manifest(file: str, golden: Golden | None, size: int) -> Quantisation | None:
    """`make` for a file; None on a CPU that cannot run int8, as then the services that load it make their own."""
    from serve_app.vision.engines.checkpoint import read_checkpoint
    from serve_app.vision.engines.openvino import has_vnni

    return make(read_checkpoint(Path(file)), golden, size) if has_vnni() else None


def make(network: Network, golden: Golden | None, size: int, cpu_threads: int | None = None) -> Quantisation:
    """Calibrates on the golden set's photos, if there is one, and on the sample photos, and compares with float32."""
    from serve_app.vision.engines import int8, openvino
    from serve_app.vision.engines.checkpoint import names_of, task_of

    started = time.perf_counter()
    graph, names, task = openvino.graph(network), names_of(network), task_of(network)
    own = [photo.jpeg for photo in golden.photos] if golden else []
    samples = [path.read_bytes() for path in sample_photos.files()]
    images = calibration.images([*own, *samples], size, crops=task.crops)
    ranges = int8.ranges(graph, (image[None] for image in images), openvino.options("float32", cpu_threads))
    if not np.isfinite(list(ranges.values())).all():  # `Loaded.warm` refuses such a network
        return Quantisation(versions=current(), ranges={}, objects=0, missed=0, score=0, overlap=0)
    exact = openvino.OpenVinoEngine(graph, names, task, "float32", cpu_threads)
    quick = openvino.OpenVinoEngine(int8.quantised(graph, ranges), names, task, "int8", cpu_threads)
    pairs: list[tuple[Expected, float, Expected | None]] = []
    for image in images:
        pairs += paired(image, exact, quick)
        if len(pairs) >= ENOUGH:
            break
    both = [(one, overlap, other) for one, overlap, other in pairs if other and overlap > SAME]
    made = Quantisation(
        versions=current(),
        ranges=ranges,
        objects=len(pairs),
        missed=1 - len(both) / max(len(pairs), 1),
        score=statistics.fmean(abs(one.score - other.score) for one, _, other in both) if both else 0,
        overlap=statistics.fmean(overlap for _, overlap, _ in both) if both else 0,
    )
    logger.info("calibrated int8 in %.1f s, once for these weights", time.perf_counter() - started)
    return made


def paired(image: NDArray[np.uint8], exact: Engine, quick: Engine) -> list[tuple[Expected, float, Expected | None]]:
    """Each object that `exact` finds in a network input, with what `quick` finds of its class, and their overlap."""
    height, width = image.shape[:2]
    whole = Letterbox(width, height, 1, 1, 0, 0)
    others = seen(quick, image, whole, LOWER)
    return [(one, *nearest(exact.task, one, others)) for one in seen(exact, image, whole, CONF)]
