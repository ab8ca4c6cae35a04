"""The tiles and merges of this service beside those of the `sahi` package, with the same network.

SAHI cuts the photo, calls the network for each slice and for the whole, and merges (`get_sliced_prediction`). This
service does it by `tiles.prepare` and `Task.merged`. Prints the share of boxes that have one of the other side with an
IoU of 0.99 and the same class. Needs `sahi`, see `make bench-tiles`.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from sahi.models.base import DetectionModel
from sahi.predict import get_sliced_prediction
from sahi.prediction import ObjectPrediction
from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list

from loadtests import mosaics
from serve_app.settings import AppSettings, PredictOptions
from serve_app.vision import boxes, image, tiles
from serve_app.vision.boxes import Detections
from serve_app.vision.tasks.task import recognise
from serve_app.weights import loader
from serve_app.weights.loader import Loaded

CONF = 0.25
MERGES = {
    "nms_iou": ("NMS", "IOU"), "nms_ios": ("NMS", "IOS"), "nmm_iou": ("NMM", "IOU"), "nmm_ios": ("NMM", "IOS"),
    "greedy_nmm_iou": ("GREEDYNMM", "IOU"), "greedy_nmm_ios": ("GREEDYNMM", "IOS"),
}  # fmt: skip


letterboxed = image.letterbox


class Case(NamedTuple):
    """What is asked of both."""

    side: int
    overlap: float
    merge: str


class OurNetwork(DetectionModel):  # type: ignore[misc] # SAHI has no types
    """This service's engine as a model of SAHI."""

    def __init__(self, loaded: Loaded, size: int) -> None:
        self._loaded, self._size = loaded, size
        super().__init__(model=loaded, confidence_threshold=CONF)

    def set_model(self, model: Loaded, **_: object) -> None:
        """See SAHI."""
        self.model = model
        self.category_mapping = {str(i): name for i, name in enumerate(model.engine.class_names)}

    def perform_inference(self, image: np.ndarray[Any, Any]) -> None:
        """See SAHI."""
        network_input, letterbox = letterboxed(image, self._size)
        self._original_predictions = [found(self._loaded, network_input, letterbox)]

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: list[Any], full_shape_list: list[Any] | None = None
    ) -> None:
        names = self._loaded.engine.class_names
        shift, full = fix_shift_amount_list(shift_amount_list)[0], fix_full_shape_list(full_shape_list)
        self._object_prediction_list_per_image = [
            [
                ObjectPrediction(
                    bbox=box, category_id=k, score=score, category_name=names[k],
                    shift_amount=shift, full_shape=full[0] if full else None,
                )
                for box, score, k in zip(one.xyxy.tolist(), one.confidence.tolist(), one.class_id.tolist(), strict=True)
            ]
            for one in self._original_predictions
        ]  # fmt: skip


def found(loaded: Loaded, network_input: np.ndarray[Any, Any], letterbox: image.Letterbox) -> Detections:
    """The boxes in one network input."""
    return recognise(loaded.engine.task, loaded.engine([network_input])[0], letterbox, CONF)  # type: ignore[return-value]


def of_sahi(photo: Path, network: OurNetwork, case: Case) -> Detections:
    """What SAHI finds."""
    kind, measure = MERGES[case.merge]
    with Image.open(photo) as opened:
        result = get_sliced_prediction(
            np.asarray(opened), network, case.side, case.side,
            overlap_height_ratio=case.overlap, overlap_width_ratio=case.overlap,
            postprocess_type=kind, postprocess_match_metric=measure, postprocess_match_threshold=0.5, verbose=0,
        )  # fmt: skip
    rows = [(*one.bbox.to_xyxy(), one.score.value, one.category.id) for one in result.object_prediction_list]
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def ours(photo: Path, loaded: Loaded, size: int, case: Case) -> Detections:
    """What this service finds."""
    options = PredictOptions.model_validate({"tile": case.side, "overlap": case.overlap, "tile_merge": case.merge})
    tiling = tiles.Tiling(case.side, case.overlap, 10_000)
    inputs, letterboxes, _ = tiles.prepare(photo.read_bytes(), size, 10**8, 1, tiling)
    task = loaded.engine.task
    candidates = [task.candidates(loaded.engine([one])[0], CONF, options) for one in inputs]
    return task.merged(candidates, letterboxes, options, lambda: None)  # type: ignore[return-value]


def same(one: Detections, other: Detections) -> int:
    """How many boxes of `one` are in `other`, too."""
    return sum(
        bool(((boxes.overlaps(one.take([n]), other, "iou") >= 0.99) & (other.class_id == one.class_id[n])).any())
        for n in range(len(one))
    )


def main(photos: Path, labels: Path, weights: str) -> None:
    """Prints a line for each way to merge, tile and overlap."""
    settings = AppSettings(weights=weights)
    pinned = loader.pin(weights, settings)
    size, get = pinned.image_size, partial(loader.fetch, settings=settings)
    loaded = loader.load(pinned.uri, get, task=pinned.task, settings=settings, size=size, device="cpu", batch_sizes={1})
    network = OurNetwork(loaded, size)
    with tempfile.TemporaryDirectory() as folder:
        large = mosaics.write(sorted(photos.glob("*.jpg")), labels, Path(folder))
        for (side, overlap), merge in itertools.product(((640, 0.2), (500, 0.35), (900, 0.1)), MERGES):
            case = Case(side, overlap, merge)
            pairs = [(of_sahi(one, network, case), ours(one, loaded, size, case)) for one in large]
            theirs, here = (sum(len(pair[n]) for pair in pairs) for n in (0, 1))
            shares = sum(same(*pair) for pair in pairs) / theirs, sum(same(*pair[::-1]) for pair in pairs) / here
            print(f"{side} px, overlap {overlap}, {merge}: SAHI {theirs} boxes, {shares[0]:.4f} of them also here; "
                  f"here {here}, {shares[1]:.4f} of them also in SAHI", flush=True)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of labelled JPEGs")
    parser.add_argument("--labels", type=Path, required=True, help="their labels in YOLO's format")
    parser.add_argument("--weights", default="auto")
    main(**vars(parser.parse_args()))
