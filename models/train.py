"""`python -m models.train`: trains the bundled model, a YOLOv8n for five road classes, with COCO's YOLOv8n as teacher.

    photos ─► crops (affine, mosaic, colour) ─┬─► student ─┬─► detection loss against the labels
                                              └─► teacher ─┴─► distillation: features, classes, boxes

The data set is small (2,130 photos, nearly all of highways), so labels alone teach little about other photos. The
teacher answers for every crop at every anchor and every layer, for photos with and without labels. From it the student
learns to find people and buses in photos unlike its own. The best epoch is chosen on the validation photos, scored as
the service scores them. Only `make accuracy` uses the outside test.

    python -m models.train --data DATA/data.yaml --teacher yolov8n.pt --start start.pt --unlabelled PHOTOS/

A training that was stopped goes on from `OUT/last.pt` when it is started again with the same arguments, and ends with
the model that it would have made without the stop. `sagemaker.py` runs it as SageMaker asks.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import ultralytics
import yaml
from torch.utils.data import DataLoader, Subset
from ultralytics.nn.tasks import DetectionModel

from models.accuracy import mean_ap
from models.augment import Crops, Sample, collate, read_photos
from models.distil import SIZE, Trainer
from serve_app.vision import boxes, image

CURVE = ("epoch", "box", "cls", "dfl", "features", "soft_cls", "soft_box", "val_map50", "minutes")
ELSEWHERE = {"out", "threads"}  # arguments that may differ when a training goes on: they do not change the result


@torch.inference_mode()
def detect(network: DetectionModel, photo: Path, conf: float) -> boxes.Detections:
    """One photo through the service's own stages: boxes in its pixels."""
    network_input, letterbox = image.letterbox(image.decode(photo.read_bytes(), 52_000_000), SIZE)
    x = torch.from_numpy(network_input)[None].permute(0, 3, 1, 2).float().div(255)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head = network(x)[0].float()[0].numpy()
    found = boxes.non_max_suppression(boxes.candidates(head, conf), 0.7, 300)
    return boxes.to_photo(found, letterbox)


def validate(network: DetectionModel, photos: list[Path], labels: list[np.ndarray]) -> float:
    """mAP50 as `make accuracy` computes it."""
    return mean_ap([detect(network, photo, conf=0.001) for photo in photos], labels)


def pseudo_label(teacher: DetectionModel, photos: list[Path], classes: list[int]) -> list[Sample]:
    """Photos without labels, with the teacher's boxes as labels; its confidence must be at least 0.35."""
    samples = []
    for photo in photos:
        found = detect(teacher, photo, conf=0.35)
        mine = found.take(np.isin(found.class_id, classes))
        ids = np.array([classes.index(k) for k in mine.class_id], np.float32).reshape(-1, 1)
        bgr = np.ascontiguousarray(image.decode(photo.read_bytes(), 52_000_000)[:, :, ::-1])
        samples.append((bgr, np.hstack([ids, mine.xyxy])))
    return samples


def groups_of(
    args: argparse.Namespace, data: dict[str, Any], trainer: Trainer
) -> tuple[list[list[Sample]], list[float]]:
    """The groups of training photos that are not empty, and the shares of `--mix` for them.

    The groups are highway photos (`hw_*.jpg`), all others, and photos whose labels are the teacher's answers. Raises
    ValueError without any photo.
    """
    root = args.data.parent
    photos = sorted((root / data["train"]).glob("*.jpg"))
    highway, everyday = ([p for p in photos if p.name.startswith("hw_") is is_highway] for is_highway in (True, False))
    # The outside test must not be trained on.
    outside = {p.name.removeprefix("coco_") for p in (root / data["test"]).glob("*.jpg")} if "test" in data else set()
    unlabelled = [p for f in args.unlabelled for p in sorted(f.glob("*.jpg")) if p.name not in outside]
    every = [read_photos(highway), read_photos(everyday), pseudo_label(trainer.teacher, unlabelled, trainer.classes)]
    used = [(group, share) for group, share in zip(every, args.mix, strict=True) if group]
    if not used:
        raise ValueError(f"{args.data.name}: no photo matches {data['train']}/*.jpg")
    print([len(group) for group in every], "training photos", flush=True)
    return [group for group, _ in used], [share for _, share in used]


def facts_of(args: argparse.Namespace) -> dict[str, str]:
    """What made the model: versions, and the arguments with the names of files instead of their paths."""
    given = {k: [str(p.name) for p in v] if k == "unlabelled" else v for k, v in vars(args).items()}
    return {
        "torch": str(torch.__version__),
        "ultralytics": ultralytics.__version__,
        "python": platform.python_version(),
    } | {k: str(v.name if isinstance(v, Path) else v) for k, v in given.items()}


class Run:
    """How far a training is, in `OUT/last.pt`: the trainer's state, the rows of the curve, the best mAP50.

    `losses` are those of the steps since the last row. Raises ValueError when the file belongs to another training.
    """

    def __init__(self, trainer: Trainer, out: Path, facts: dict[str, str]) -> None:
        self.trainer, self.out, self.facts = trainer, out, facts
        self.rows: list[list[float]] = []
        self.losses: list[list[float]] = []
        self.best = -1.0  # so that the first epoch that is validated is kept, however bad
        if not (out / "last.pt").exists():
            return
        kept = torch.load(out / "last.pt", map_location="cpu", weights_only=True)
        if other := sorted(k for k in facts.keys() - ELSEWHERE if facts[k] != kept["facts"].get(k)):
            raise ValueError(
                f"last.pt is from a training with another {', '.join(other)}: use another folder for a new one"
            )
        trainer.restore(kept["trainer"])
        self.rows, self.losses, self.best = kept["rows"], kept["losses"], kept["best"]
        print(f"going on after step {trainer.done}, in epoch {len(self.rows)}", flush=True)

    @property
    def minutes(self) -> float:
        """Of the epochs that are done."""
        return self.rows[-1][-1] if self.rows else 0.0

    def keep(self) -> None:
        """Writes the file, whole or not at all: the process may be killed at any time. Raises OSError."""
        state = {"trainer": self.trainer.state(), "rows": self.rows, "losses": self.losses, "best": self.best}
        partial = self.out / "last.part"
        torch.save(state | {"facts": self.facts}, partial)
        partial.replace(self.out / "last.pt")

    def epoch_done(self, ap50: float, minutes: float) -> None:
        """Adds a row to `curve.csv`, keeps the model when it is the best so far, and the state."""
        means = np.array(self.losses).mean(0).round(4).tolist()
        self.rows.append([len(self.rows), *means, round(ap50, 4), round(minutes, 1)])
        self.losses = []
        with (self.out / "curve.csv").open("w", newline="") as file:
            csv.writer(file).writerows([CURVE, *self.rows])
        if ap50 > self.best:
            self.best = ap50
            self.trainer.save(self.out / "best.pt", self.facts)
        self.keep()


def train(args: argparse.Namespace, stopped: Callable[[], bool] = lambda: False) -> bool:
    """Trains for `epochs`; every `every` epochs it validates the average, and saves it when it is the best so far.

    Asks `stopped` after every step. If it says yes, the state is kept and the training ends. Returns whether the
    training is complete. Raises ValueError or OSError when the data, the teacher or `last.pt` do not fit.
    """
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    data = yaml.safe_load(args.data.read_text())
    steps = args.crops // args.batch
    names = data["names"] if isinstance(data["names"], dict) else dict(enumerate(data["names"]))
    trainer = Trainer(args, names, args.epochs * steps)
    groups, shares = groups_of(args, data, trainer)
    held_out = sorted((args.data.parent / data["val"]).glob("*.jpg"))
    labels = [boxes for _, boxes in read_photos(held_out)]
    args.out.mkdir(parents=True, exist_ok=True)
    facts = facts_of(args)
    (args.out / "facts.json").write_text(json.dumps(facts, indent=1))
    run = Run(trainer, args.out, facts)
    started = time.time() - 60 * run.minutes
    for epoch in range(len(run.rows), args.epochs):
        crops = Crops(
            groups, shares, size=args.size, count=args.crops, zoom_log2=args.zoom, mosaic=args.mosaic,
            seed=args.seed + epoch,
        )  # fmt: skip
        left = Subset(crops, range(len(run.losses) * args.batch, steps * args.batch))
        for batch in DataLoader(left, args.batch, num_workers=1, collate_fn=collate):
            run.losses.append(trainer.step(batch).tolist())
            if stopped():
                run.keep()
                print(f"stopped after step {trainer.done}, in epoch {epoch}", flush=True)
                return False
        due = epoch % args.every == args.every - 1 or epoch == args.epochs - 1
        ap50 = validate(trainer.average, held_out, labels) if due else float("nan")
        minutes = (time.time() - started) / 60
        run.epoch_done(ap50, minutes)
        print(f"epoch {epoch}: val mAP50 {ap50:.4f} (best {run.best:.4f}), {minutes:.0f} min", flush=True)
    return True


def parser() -> argparse.ArgumentParser:
    """The options. An invalid value raises argparse.ArgumentError."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, exit_on_error=False
    )
    options.add_argument("--data", type=Path, required=True, help="YAML of a YOLO data set with train, val and test")
    options.add_argument("--teacher", type=Path, required=True, help="checkpoint of COCO's YOLOv8n")
    options.add_argument("--start", type=Path, help="checkpoint to start from; random weights when not given")
    options.add_argument("--unlabelled", type=Path, nargs="*", default=[], help="folders of photos without labels")
    options.add_argument("--out", type=Path, default=Path("runs/default"))
    options.add_argument(
        "--mix", type=float, nargs=3, default=[0.55, 0.25, 0.2], help="shares of highway, other, unlabelled"
    )
    options.add_argument(
        "--hard", type=float, nargs=3, default=[0.5, 0.5, 0.5], help="label losses: gains of box, cls, dfl"
    )
    options.add_argument(
        "--soft", type=float, nargs=3, default=[4.0, 1.0, 2.0], help="distillation: gains of features, cls, box"
    )
    options.add_argument("--size", type=int, default=320, help="side of the crops in pixels")
    options.add_argument("--zoom", type=float, nargs=2, default=[-0.8, 1.4], help="range of the zoom, as powers of 2")
    options.add_argument("--mosaic", type=float, default=0.4, help="share of crops made of four photos")
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--crops", type=int, default=4000, help="crops per epoch")
    options.add_argument("--epochs", type=int, default=28)
    options.add_argument("--every", type=int, default=2, help="epochs between validations")
    options.add_argument("--lr", type=float, default=1.5e-3)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--seed", type=int, default=0)
    return options


if __name__ == "__main__":
    train(parser().parse_args())
