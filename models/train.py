"""`python -m models.train`: trains the bundled model, a YOLOv8n for five road classes, with COCO's YOLOv8n as teacher.

    photos ─► crops (affine, mosaic, colour) ─┬─► student ─┬─► detection loss against the labels
                                              └─► teacher ─┴─► distillation: features, classes, boxes

The data set is small (2,130 photos, nearly all of highways), so labels alone teach little about other photos. The
teacher answers for every crop at every anchor and every layer, for photos with and without labels. From it the student
learns to find people and buses in photos unlike its own. The best epoch is chosen on the validation photos, scored as
the service scores them. Only `make accuracy` uses the outside test.

    python -m models.train --data DATA/data.yaml --teacher yolov8n.pt --start start.pt --unlabelled PHOTOS/
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
import ultralytics
import yaml
from torch.utils.data import DataLoader
from ultralytics.nn.tasks import DetectionModel

from loadtests.benchmarks.accuracy import score
from models.augment import Crops, Sample, collate, read_photos
from models.distil import SIZE, Trainer
from serve_app.vision import boxes, image

CURVE = ("epoch", "box", "cls", "dfl", "features", "soft_cls", "soft_box", "val_map50", "minutes")


@torch.inference_mode()
def detect(network: DetectionModel, photo: Path, conf: float) -> tuple[boxes.Detections, tuple[int, int]]:
    """One photo through the service's own stages: boxes in its pixels, and its (height, width)."""
    network_input, letterbox = image.letterbox(image.decode(photo.read_bytes(), 52_000_000), SIZE)
    x = torch.from_numpy(network_input)[None].permute(0, 3, 1, 2).float().div(255)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head = network(x)[0].float()[0].numpy()
    found = boxes.non_max_suppression(boxes.candidates(head, conf, None), 0.7, 300)
    return boxes.to_photo(found, letterbox), (letterbox.height, letterbox.width)


def validate(network: DetectionModel, photos: list[Path], labels: Path) -> float:
    """mAP50 as `make accuracy` computes it."""
    answers = []
    for photo in photos:
        found, shape = detect(network, photo, conf=0.001)
        rows = zip(found.xyxy.tolist(), found.confidence.tolist(), found.class_id.tolist(), strict=True)
        results = [
            {"class": k, "confidence": s, "box": dict(zip(("x1", "y1", "x2", "y2"), b, strict=True))}
            for b, s, k in rows
        ]
        answers.append({"shape": shape, "results": results})
    return score(photos, labels, answers)[1]


def pseudo_label(teacher: DetectionModel, photos: list[Path], classes: list[int]) -> list[Sample]:
    """Photos without labels, with the teacher's boxes as labels; its confidence must be at least 0.35."""
    samples = []
    for photo in photos:
        found, _ = detect(teacher, photo, conf=0.35)
        mine = found.take(np.isin(found.class_id, classes))
        ids = np.array([classes.index(k) for k in mine.class_id], np.float32).reshape(-1, 1)
        bgr = np.ascontiguousarray(image.decode(photo.read_bytes(), 52_000_000)[:, :, ::-1])
        samples.append((bgr, np.hstack([ids, mine.xyxy])))
    return samples


def train(args: argparse.Namespace) -> None:
    """Trains for `epochs`; every `every` epochs it validates the average, and saves it when it is the best so far."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    data, root = yaml.safe_load(args.data.read_text()), args.data.parent
    per_epoch = args.crops // args.batch
    trainer = Trainer(args, data["names"], args.epochs * per_epoch)

    folder = root / data["train"]
    everyday, highway = read_photos(folder, "coco_*.jpg"), read_photos(folder, "hw_*.jpg")
    outside = {p.name.removeprefix("coco_") for p in (root / data["test"]).glob("*.jpg")}  # must not be trained on
    unlabelled = [p for f in args.unlabelled for p in sorted(f.glob("*.jpg")) if p.name not in outside]
    groups = [highway, everyday, pseudo_label(trainer.teacher, unlabelled, trainer.classes)]
    held_out = sorted((root / data["val"]).glob("*.jpg"))
    print([len(g) for g in groups], "training photos,", len(held_out), "validation photos", flush=True)

    versions = {
        "torch": str(torch.__version__),
        "ultralytics": ultralytics.__version__,
        "python": platform.python_version(),
    }
    given = {k: [str(p.name) for p in v] if k == "unlabelled" else v for k, v in vars(args).items()}
    facts = versions | {k: str(v.name if isinstance(v, Path) else v) for k, v in given.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "facts.json").write_text(json.dumps(facts, indent=1))
    best, started = 0.0, time.time()
    with (args.out / "curve.csv").open("w", newline="") as file:
        curve = csv.writer(file)
        curve.writerow(CURVE)
        for epoch in range(args.epochs):
            crops = Crops(
                groups, args.mix, size=args.size, count=args.crops, zoom_log2=args.zoom, mosaic=args.mosaic,
                seed=args.seed + epoch,
            )  # fmt: skip
            loader = DataLoader(crops, args.batch, num_workers=1, collate_fn=collate, drop_last=True)
            losses = torch.stack([trainer.step(batch) for batch in loader]).mean(0)
            due = epoch % args.every == args.every - 1
            ap50 = (
                validate(trainer.average, held_out, root / data["val"].replace("images", "labels")) if due else np.nan
            )
            minutes = (time.time() - started) / 60
            curve.writerow([epoch, *losses.numpy().round(4), round(ap50, 4), round(minutes, 1)])
            file.flush()
            print(f"epoch {epoch}: val mAP50 {ap50:.4f} (best {best:.4f}), {minutes:.0f} min", flush=True)
            if ap50 > best:
                best = ap50
                trainer.save(args.out / "best.pt", facts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="YAML of a YOLO data set with train, val and test")
    parser.add_argument("--teacher", type=Path, required=True, help="checkpoint of COCO's YOLOv8n")
    parser.add_argument("--start", type=Path, help="checkpoint to start from; random weights when not given")
    parser.add_argument("--unlabelled", type=Path, nargs="*", default=[], help="folders of photos without labels")
    parser.add_argument("--out", type=Path, default=Path("runs/default"))
    parser.add_argument(
        "--mix", type=float, nargs=3, default=[0.55, 0.25, 0.2], help="shares of highway, everyday, unlabelled"
    )
    parser.add_argument(
        "--hard", type=float, nargs=3, default=[0.5, 0.5, 0.5], help="label losses: gains of box, cls, dfl"
    )
    parser.add_argument(
        "--soft", type=float, nargs=3, default=[4.0, 1.0, 2.0], help="distillation: gains of features, cls, box"
    )
    parser.add_argument("--size", type=int, default=320, help="side of the crops in pixels")
    parser.add_argument("--zoom", type=float, nargs=2, default=[-0.8, 1.4], help="range of the zoom, as powers of 2")
    parser.add_argument("--mosaic", type=float, default=0.4, help="share of crops made of four photos")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crops", type=int, default=4000, help="crops per epoch")
    parser.add_argument("--epochs", type=int, default=28)
    parser.add_argument("--every", type=int, default=2, help="epochs between validations")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
