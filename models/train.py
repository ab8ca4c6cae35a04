"""Trains the bundled default model: a YOLOv8n for five road classes, distilled from COCO's YOLOv8n.

    photos ─► crops (affine, mosaic, colour) ─┬─► student ─┬─► detection loss against the labels
                                              └─► teacher ─┴─► distillation: features, classes, boxes

The data set is small (2,130 photos, nearly all of highways), so labels alone teach little about the rest of the
world. The teacher answers for every crop at every anchor and every layer, on labelled photos and on photos without
labels alike, which is what lets the student see people and buses in a stranger's photo. The best epoch is chosen on
the validation photos, scored as the service scores them; the outside test is touched by `make accuracy` only.

    python -m models.train --data DATA/data.yaml --teacher yolov8n.pt --start start.pt --unlabelled PHOTOS/
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import platform
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import ultralytics
import yaml
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss

from loadtests.accuracy import score
from models.augment import Crops, Sample, collate, read_photos
from serve_app import boxes, image
from serve_app.model import read_checkpoint
from serve_app.weights import sha256_of

COCO_IDS = {"person": 0, "car": 2, "motorcycle": 3, "bus": 5, "truck": 7}
HINTS = (2, 4, 6, 8, 9, 12, 15, 18, 21)  # the ends of YOLOv8's stages, where student and teacher are compared
SIZE = 416  # the service's square, in which validation and pseudo-labels are made
CURVE = ("epoch", "box", "cls", "dfl", "features", "soft_cls", "soft_box", "val_map50", "minutes")


def distillation(
    student: dict[str, Tensor], teacher: dict[str, Tensor], hints: list[tuple[Tensor, Tensor]], classes: list[int]
) -> Tensor:
    """How far the student is from the teacher: (features, classes, boxes), each a mean over what matters.

    Features: squared error over the teacher's variance, layer by layer (FitNets, arXiv:1412.6550). Classes: cross
    entropy with the teacher's scores as soft targets. Boxes: KL divergence of the 16-bin edge distributions,
    weighted by the teacher's best score (Localization Distillation, arXiv:2102.12252).
    """
    errors = [functional.mse_loss(s.float(), t.float()) / t.float().var().clamp(min=1e-3) for s, t in hints]
    every = teacher["scores"].float().sigmoid()
    target = every[:, classes]
    cls = functional.binary_cross_entropy_with_logits(student["scores"].float(), target, reduction="sum")
    weight = every.amax(1)  # (B, A); of all 80 classes: a box is a box
    log_p, log_q = (x["boxes"].float().unflatten(1, (4, -1)).log_softmax(2) for x in (student, teacher))
    kl = functional.kl_div(log_p, log_q, reduction="none", log_target=True).sum(2).mean(1)
    soft_box = (kl * weight).sum() / weight.sum().clamp(min=1)
    return torch.stack([torch.stack(errors).mean(), cls / target.amax(1).sum().clamp(min=1), soft_box])


@torch.inference_mode()
def detect(network: DetectionModel, photo: Path, conf: float) -> tuple[boxes.Detections, tuple[int, int]]:
    """One photo through the service's own stages: boxes in its pixels, and (height, width)."""
    square, lying = image.letterbox(image.decode(photo.read_bytes(), 52_000_000), SIZE)
    x = torch.from_numpy(square)[None].permute(0, 3, 1, 2).float().div(255)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head = network(x)[0].float()[0].numpy()
    found = boxes.non_max_suppression(boxes.candidates(head, conf, None), 0.7, 300)
    return boxes.to_photo(found, lying), (lying.height, lying.width)


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
    """The teacher's boxes of at least 0.35 as labels for photos without any."""
    samples = []
    for photo in photos:
        found, _ = detect(teacher, photo, conf=0.35)
        mine = found.take(np.isin(found.class_id, classes))
        ids = np.array([classes.index(k) for k in mine.class_id], np.float32).reshape(-1, 1)
        bgr = np.ascontiguousarray(image.decode(photo.read_bytes(), 52_000_000)[:, :, ::-1])
        samples.append((bgr, np.hstack([ids, mine.xyxy])))
    return samples


class Trainer:
    """Student, teacher and the running average of the student, which is what is kept."""

    def __init__(self, args: argparse.Namespace, names: dict[int, str], steps: int) -> None:
        self.args, self.names = args, names
        self.classes = [COCO_IDS[n] for n in names.values()]
        self.teacher = read_checkpoint(args.teacher).to(memory_format=torch.channels_last).requires_grad_(False)
        fresh = args.start is None
        self.student = (
            DetectionModel("yolov8n.yaml", nc=len(names), verbose=False) if fresh else read_checkpoint(args.start)
        )
        self.student.to(memory_format=torch.channels_last).requires_grad_(True).train()
        self.student.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)  # Ultralytics' default gains
        self.average = copy.deepcopy(self.student).eval().requires_grad_(False)
        self.loss = v8DetectionLoss(self.student)
        self.seen = {self.student: self._watch(self.student), self.teacher: self._watch(self.teacher)}
        weights = [p for p in self.student.parameters() if p.ndim > 1]
        others = [p for p in self.student.parameters() if p.ndim <= 1]  # biases and norms do not decay
        groups = [{"params": weights, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, args.lr, total_steps=steps + 1, pct_start=0.05, final_div_factor=20
        )
        self.gains = torch.tensor([*args.hard, *args.soft])
        self.done = 0

    @staticmethod
    def _watch(network: DetectionModel) -> dict[int, Tensor]:
        """The output of each hint layer of the latest forward pass."""
        seen: dict[int, Tensor] = {}
        for i in HINTS:
            network.model[i].register_forward_hook(lambda _m, _x, y, i=i: seen.__setitem__(i, y))
        return seen

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        """One update; returns the six losses of the curve."""
        x = batch["img"].float().div(255).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                wanted = self.teacher(x)[1]
            given = self.student(x)
        given = {k: v.float() if isinstance(v, Tensor) else v for k, v in given.items()}
        hard = self.loss.loss(given, batch)[0] / len(x)
        hints = [(self.seen[self.student][i], self.seen[self.teacher][i]) for i in HINTS]
        losses = torch.cat([hard, distillation(given, wanted, hints, self.classes)])
        self.optimizer.zero_grad(set_to_none=True)
        (losses * self.gains).sum().backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 10.0)
        self.optimizer.step()
        self.schedule.step()
        self.done += 1
        keep = min(0.999, (1 + self.done) / (20 + self.done))
        with torch.no_grad():
            for a, b in zip(self.average.state_dict().values(), self.student.state_dict().values(), strict=True):
                if a.dtype.is_floating_point:
                    a.lerp_(b, 1 - keep)
        return losses.detach()

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Writes the average as the service reads it: fp16, no training state, plain values; and its manifest."""
        clean = copy.deepcopy(self.average).half()
        clean.names, clean.args, clean.criterion = self.names, {"imgsz": SIZE, "task": "detect"}, None
        for module in clean.modules():
            module._forward_hooks.clear()
        partial = path.with_suffix(".part")
        torch.save({"model": clean, "train_args": facts}, partial)
        partial.replace(path)
        manifest: dict[str, Any] = {"sha256": sha256_of(path), "bytes": path.stat().st_size, "image_size": SIZE}
        manifest["class_names"] = list(self.names.values())
        path.with_suffix(".json").write_text(json.dumps(manifest, indent=1) + "\n")


def train(args: argparse.Namespace) -> None:
    """Runs the schedule; after every few epochs scores the average on the validation photos and keeps the best."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    data, root = yaml.safe_load(args.data.read_text()), args.data.parent
    per_epoch = args.crops // args.batch
    trainer = Trainer(args, data["names"], args.epochs * per_epoch)

    folder = root / data["train"]
    everyday, highway = read_photos(folder, "coco_*.jpg"), read_photos(folder, "hw_*.jpg")
    outside = {p.name.removeprefix("coco_") for p in (root / data["test"]).glob("*.jpg")}  # must stay outside
    unlabelled = [p for f in args.unlabelled for p in sorted(f.glob("*.jpg")) if p.name not in outside]
    groups = [highway, everyday, pseudo_label(trainer.teacher, unlabelled, trainer.classes)]
    held_out = sorted((root / data["val"]).glob("*.jpg"))
    print([len(g) for g in groups], "photos to learn from,", len(held_out), "to validate", flush=True)

    versions = {
        "torch": str(torch.__version__),
        "ultralytics": ultralytics.__version__,
        "python": platform.python_version(),
    }
    facts = versions | {k: str(v.name if isinstance(v, Path) else v) for k, v in vars(args).items()}
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
    parser.add_argument("--data", type=Path, required=True, help="a YOLO data set with train, val and test")
    parser.add_argument("--teacher", type=Path, required=True, help="COCO YOLOv8n")
    parser.add_argument("--start", type=Path, help="weights to go on from; else random ones")
    parser.add_argument("--unlabelled", type=Path, nargs="*", default=[], help="folders of photos without labels")
    parser.add_argument("--out", type=Path, default=Path("runs/default"))
    parser.add_argument("--mix", type=float, nargs=3, default=[0.55, 0.25, 0.2], help="highway, everyday, unlabelled")
    parser.add_argument("--hard", type=float, nargs=3, default=[0.5, 0.5, 0.5], help="gains of box, cls, dfl")
    parser.add_argument("--soft", type=float, nargs=3, default=[4.0, 1.0, 2.0], help="gains of features, cls, box")
    parser.add_argument("--size", type=int, default=320, help="side of the crops in pixels")
    parser.add_argument("--zoom", type=float, nargs=2, default=[-0.8, 1.4], help="range of the zoom, as powers of 2")
    parser.add_argument("--mosaic", type=float, default=0.4, help="share of crops of four photos")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crops", type=int, default=4000, help="crops in an epoch")
    parser.add_argument("--epochs", type=int, default=28)
    parser.add_argument("--every", type=int, default=2, help="validate after so many epochs")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
