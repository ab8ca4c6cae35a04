"""Trains the bundled default model: a YOLOv8n for five road classes, distilled from COCO's YOLOv8n.

    photos ─► crops (affine, mosaic, colour) ─┬─► student ─┬─► detection loss against the labels
                                              └─► teacher ─┴─► distillation: features, classes, boxes

The data sets are small (2,130 photos, nearly all of highways), so labels alone teach little about the rest of
the world. The teacher answers for every crop at every anchor and every layer, on labelled photos and on photos
without labels alike, which is what lets the student see people and buses in a stranger's photo.
Early stopping reads the validation split only; the outside test is scored by `make accuracy`.

    python models/train.py --data DATA/data.yaml --teacher yolov8n.pt --start start.pt --unlabelled PHOTOS/
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import platform
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
import ultralytics
import yaml
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.nms import non_max_suppression

COCO_IDS = {"person": 0, "car": 2, "motorcycle": 3, "bus": 5, "truck": 7}
HINTS = (2, 4, 6, 8, 9, 12, 15, 18, 21)  # the ends of YOLOv8's stages, where student and teacher are compared
GREY = 114  # the letterbox colour of YOLO
Sample = tuple[np.ndarray, np.ndarray]  # BGR uint8 (H, W, 3), float32 (N, 5): class, x1, y1, x2, y2 in pixels


def read_photos(folder: Path) -> list[Sample]:
    """Every JPEG of a folder in memory, with the boxes of the YOLO label file beside it (none: an empty array)."""
    samples = []
    for path in sorted(folder.glob("*.jpg")):
        image = cv2.imread(str(path))
        height, width = image.shape[:2]
        label = Path(str(path.with_suffix(".txt")).replace("/images/", "/labels/"))
        rows = np.loadtxt(label, ndmin=2, dtype=np.float32) if label.exists() and label.stat().st_size else None
        boxes = np.zeros((0, 5), np.float32)
        if rows is not None:
            centre, half = rows[:, 1:3], rows[:, 3:5] / 2
            corners = np.hstack([centre - half, centre + half]) * (width, height, width, height)
            boxes = np.hstack([rows[:, :1], corners]).astype(np.float32)
        samples.append((image, boxes))
    return samples


def place(sample: Sample, canvas: np.ndarray, window: tuple[int, int, int, int], rng: random.Random) -> np.ndarray:
    """Draws a randomly zoomed, shifted and mirrored photo into a window (x1, y1, x2, y2) of the canvas.

    Returns its boxes (N, 5) in canvas pixels, without those of which less than 30 % is left in the window.
    """
    image, boxes = sample
    x1, y1, x2, y2 = window
    height, width = image.shape[:2]
    zoom = max(x2 - x1, y2 - y1) / max(height, width) * 2 ** rng.uniform(-0.8, 1.4)
    flip = rng.random() < 0.5
    squeeze = 2 ** rng.uniform(-0.15, 0.15)
    zoom_x, zoom_y = zoom * squeeze, zoom / squeeze
    shift_x = (x2 - x1 - width * zoom_x) * rng.random()
    shift_y = (y2 - y1 - height * zoom_y) * rng.random()
    matrix = np.array([[-zoom_x if flip else zoom_x, 0, width * zoom_x + shift_x if flip else shift_x],
                       [0, zoom_y, shift_y]])  # fmt: skip
    how = cv2.INTER_AREA if zoom < 0.6 else cv2.INTER_LINEAR
    canvas[y1:y2, x1:x2] = cv2.warpAffine(image, matrix, (x2 - x1, y2 - y1), flags=how, borderValue=(GREY,) * 3)
    if not len(boxes):
        return boxes
    xs = boxes[:, [1, 3]] * matrix[0, 0] + matrix[0, 2] + x1
    ys = boxes[:, [2, 4]] * zoom_y + shift_y + y1
    full = np.stack([xs.min(1), ys.min(1), xs.max(1), ys.max(1)], 1)
    kept = np.clip(full, (x1, y1, x1, y1), (x2, y2, x2, y2))
    area, area_full = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (kept, full))
    visible = (area > 0.3 * area_full) & (np.minimum(kept[:, 2] - kept[:, 0], kept[:, 3] - kept[:, 1]) > 3)
    return np.hstack([boxes[:, :1], kept])[visible].astype(np.float32)


def jitter(image: np.ndarray, rng: random.Random) -> np.ndarray:
    """Random hue, saturation and brightness, and now and then gray or blur, on BGR uint8 (H, W, 3)."""
    gains = np.array([rng.uniform(-1, 1) * g for g in (0.015, 0.6, 0.4)]) + 1
    levels = np.arange(256)
    tables = (levels * gains[0] % 180, np.clip(levels * gains[1], 0, 255), np.clip(levels * gains[2], 0, 255))
    channels = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    mixed = cv2.merge([cv2.LUT(c, t.astype(np.uint8)) for c, t in zip(channels, tables, strict=True)])
    image = cv2.cvtColor(mixed, cv2.COLOR_HSV2BGR)
    if rng.random() < 0.05:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    if rng.random() < 0.05:
        image = cv2.blur(image, (3, 3))
    return image


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Endless random crops; each draw takes its photo from one of the groups with the given probability."""

    def __init__(self, groups: list[list[Sample]], weights: list[float], size: int, count: int, seed: int) -> None:
        self.groups, self.weights, self.size, self.count, self.seed = groups, weights, size, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Uint8 RGB (3, S, S) and float32 (N, 5): class, then box centre and size as fractions of S."""
        rng = random.Random(self.seed * 1_000_003 + index)
        size = self.size
        canvas = np.full((size, size, 3), GREY, np.uint8)
        windows = [(0, 0, size, size)]
        if rng.random() < 0.4:  # mosaic
            x, y = (int(size * rng.uniform(0.3, 0.7)) for _ in "xy")
            windows = [(0, 0, x, y), (x, 0, size, y), (0, y, x, size), (x, y, size, size)]
        groups = rng.choices(self.groups, self.weights, k=len(windows))
        boxes = np.vstack([place(rng.choice(g), canvas, w, rng) for g, w in zip(groups, windows, strict=True)])
        centres = np.hstack(
            [boxes[:, :1], (boxes[:, 1:3] + boxes[:, 3:5]) / 2 / size, (boxes[:, 3:5] - boxes[:, 1:3]) / size]
        )
        rgb = np.ascontiguousarray(jitter(canvas, rng)[:, :, ::-1].transpose(2, 0, 1))
        return torch.from_numpy(rgb), torch.from_numpy(centres.astype(np.float32))


def collate(items: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The batch that Ultralytics' detection loss reads."""
    images, labels = zip(*items, strict=True)
    index = torch.cat([torch.full((len(rows),), i, dtype=torch.float32) for i, rows in enumerate(labels)])
    rows = torch.cat(labels)
    return {"img": torch.stack(images), "batch_idx": index, "cls": rows[:, :1], "bboxes": rows[:, 1:]}


def load(path: Path) -> DetectionModel:
    """A checkpoint's network in float32. Training reads only files that you made or verified yourself."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    model: DetectionModel = (checkpoint.get("ema") or checkpoint["model"]).float()
    return model.to(memory_format=torch.channels_last)


def watch(model: DetectionModel, seen: dict[int, Tensor]) -> None:
    """Keeps the output of each hint layer of the latest forward pass in `seen`."""
    for i in HINTS:
        model.model[i].register_forward_hook(lambda _m, _x, y, i=i: seen.__setitem__(i, y))


def distillation(student: dict[str, Tensor], teacher: dict[str, Tensor], hints: list[tuple[Tensor, Tensor]],
                 classes: list[int]) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """How far the student is from the teacher: (features, classes, boxes), each a mean over what matters.

    Features: squared error over the teacher's variance, layer by layer (FitNets, arXiv:1412.6550). Classes: cross
    entropy with the teacher's scores as soft targets. Boxes: KL divergence of the 16-bin edge distributions,
    weighted by the teacher's best score (Localization Distillation, arXiv:2102.12252).
    """
    features = torch.stack([
        functional.mse_loss(s.float(), t.float()) / t.float().var().clamp(min=1e-3) for s, t in hints
    ]).mean()  # fmt: skip
    every = teacher["scores"].float().sigmoid()
    target = every[:, classes]
    weight = every.amax(1)  # (B, A); all 80 classes: a box is a box
    total = target.amax(1).sum().clamp(min=1)
    cls = functional.binary_cross_entropy_with_logits(student["scores"].float(), target, reduction="sum") / total
    log_p, q = (x["boxes"].float().unflatten(1, (4, -1)) for x in (student, teacher))
    kl = functional.kl_div(log_p.log_softmax(2), q.log_softmax(2), reduction="none", log_target=True).sum(2).mean(1)
    return features, cls, (kl * weight).sum() / weight.sum().clamp(min=1)


def letterbox(image: np.ndarray, size: int) -> np.ndarray:
    """Scales BGR uint8 (H, W, 3) into the middle of a grey square (S, S, 3)."""
    height, width = image.shape[:2]
    ratio = size / max(height, width)
    h, w = round(height * ratio), round(width * ratio)
    top, left = (size - h) // 2, (size - w) // 2
    square = np.full((size, size, 3), GREY, np.uint8)
    square[top : top + h, left : left + w] = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    return square


@torch.inference_mode()
def predict(model: DetectionModel, image: np.ndarray, size: int, conf: float) -> np.ndarray:
    """Boxes (N, 6) of one photo in its own pixels: x1, y1, x2, y2, score, class."""
    height, width = image.shape[:2]
    ratio = size / max(height, width)
    square = letterbox(image, size)[:, :, ::-1].transpose(2, 0, 1)
    x = torch.from_numpy(np.ascontiguousarray(square))[None].float().div(255)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw = model(x.to(memory_format=torch.channels_last))[0].float()
    found: Tensor = non_max_suppression(raw, conf, 0.7, max_det=300, max_time_img=60)[0]
    found[:, [0, 2]] -= (size - round(width * ratio)) // 2
    found[:, [1, 3]] -= (size - round(height * ratio)) // 2
    found[:, :4] /= ratio
    return found.numpy()


def pseudo_label(teacher: DetectionModel, photos: list[Sample], classes: list[int]) -> list[Sample]:
    """The teacher's boxes of at least 0.35 as labels for photos without any."""
    labelled = []
    for image, _ in photos:
        found = predict(teacher, image, 640, conf=0.35)
        rows = [[classes.index(int(k)), *box] for *box, _score, k in found if int(k) in classes]
        labelled.append((image, np.array(rows, np.float32).reshape(-1, 5)))
    return labelled


def mean_ap50(model: DetectionModel, photos: list[Sample], classes: int, size: int) -> float:
    """Mean AP at IoU 0.5 over the classes, COCO's 101-point interpolation (pycocotools)."""
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k} for k in range(classes)],
    }
    found = []
    for i, (image, boxes) in enumerate(photos):
        truth["images"].append({"id": i})
        for k, x1, y1, x2, y2 in boxes.tolist():
            truth["annotations"].append({"id": len(truth["annotations"]) + 1, "image_id": i, "category_id": int(k), "iscrowd": 0,
                                         "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})  # fmt: skip
        for x1, y1, x2, y2, score, k in predict(model, image, size, conf=0.001).tolist():
            found.append({"image_id": i, "category_id": int(k), "score": score, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        score = COCOeval(coco, coco.loadRes(found), "bbox")
        score.evaluate()
        score.accumulate()
        score.summarize()
    return float(score.stats[1])


def save(model: DetectionModel, names: dict[int, str], path: Path, facts: dict[str, Any]) -> None:
    """Writes the checkpoint as the service reads it: fp16, no training state, plain Python values."""
    clean = copy.deepcopy(model).half().eval()
    clean.names, clean.args, clean.criterion = names, {"imgsz": 640, "task": "detect"}, None
    for module in clean.modules():
        module._forward_hooks.clear()
    partial = path.with_suffix(".part")
    torch.save({"model": clean, "train_args": facts}, partial)
    partial.replace(path)


def train(args: argparse.Namespace) -> None:
    """Runs the schedule; after every epoch scores the averaged weights on val and keeps the best."""
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    data = yaml.safe_load(args.data.read_text())
    names: dict[int, str] = data["names"]
    classes = [COCO_IDS[n] for n in names.values()]
    teacher = load(args.teacher).eval().requires_grad_(False)
    student = load(args.start) if args.start else DetectionModel("yolov8n.yaml", nc=len(names), verbose=False)
    student.requires_grad_(True).train()
    student.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    criterion = v8DetectionLoss(student)
    mean = copy.deepcopy(student).eval().requires_grad_(False)

    root = args.data.parent
    photos = read_photos(root / data["train"])
    held_out = {p.name.split("_")[-1] for p in (root / data["test"]).glob("*.jpg")}
    extra: list[Sample] = []
    for folder in args.unlabelled:
        for path in sorted(folder.glob("*.jpg")):
            if path.name not in held_out:  # the outside test must stay outside
                extra.append((cv2.imread(str(path)), np.zeros((0, 5), np.float32)))
    extra = pseudo_label(teacher, extra, classes)
    rare = [
        s
        for s, p in zip(photos, sorted((root / data["train"]).glob("*.jpg")), strict=True)
        if p.name.startswith("coco")
    ]
    common = [
        s
        for s, p in zip(photos, sorted((root / data["train"]).glob("*.jpg")), strict=True)
        if not p.name.startswith("coco")
    ]
    val = read_photos(root / data["val"])
    print(
        f"{len(common)} highway, {len(rare)} everyday, {len(extra)} unlabelled, {len(val)} validation photos",
        flush=True,
    )

    student_seen: dict[int, Tensor] = {}
    teacher_seen: dict[int, Tensor] = {}
    watch(student, student_seen)
    watch(teacher, teacher_seen)
    decay = [p for p in student.parameters() if p.ndim > 1 and p.requires_grad]
    plain = [p for p in student.parameters() if p.ndim <= 1 and p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], lr=args.lr
    )
    steps = args.epochs * (args.crops // args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=steps + 1, pct_start=0.05, final_div_factor=20
    )
    facts = {"seed": args.seed, "torch": torch.__version__, "ultralytics": ultralytics.__version__,
             "python": platform.python_version(), "imgsz": 640} | {k: str(v) for k, v in vars(args).items()}  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "facts.json").write_text(json.dumps(facts, indent=1))
    best, step, started = 0.0, 0, time.time()
    with (args.out / "curve.csv").open("w", newline="") as log:
        rows = csv.writer(log)
        rows.writerow(["epoch", "box", "cls", "dfl", "features", "soft_cls", "soft_box", "val_map50", "minutes"])
        for epoch in range(args.epochs):
            crops = Crops([common, rare, extra], args.mix, args.size, args.crops, args.seed + epoch)
            totals = np.zeros(6)
            loader = DataLoader(crops, args.batch, num_workers=1, collate_fn=collate, drop_last=True)
            for batch in loader:
                x = batch["img"].float().div(255).contiguous(memory_format=torch.channels_last)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    with torch.no_grad():
                        wanted = teacher(x)[1]
                    given = student(x)
                given = {k: (v.float() if isinstance(v, Tensor) else v) for k, v in given.items()}
                hard, _ = criterion.loss(given, batch) if hasattr(criterion, "loss") else criterion(given, batch)
                hard = hard / len(x)
                hints = [(student_seen[i], teacher_seen[i]) for i in HINTS]
                soft = torch.stack(distillation(given, wanted, hints, classes))
                loss = (hard * torch.tensor(args.hard)).sum() + (soft * torch.tensor(args.soft)).sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(student.parameters(), 10.0)
                optimizer.step()
                schedule.step()
                step += 1
                keep = min(0.999, (1 + step) / (20 + step))
                with torch.no_grad():
                    for a, b in zip(mean.state_dict().values(), student.state_dict().values(), strict=True):
                        if a.dtype.is_floating_point:
                            a.lerp_(b, 1 - keep)
                totals += torch.cat([hard.detach(), soft.detach()]).numpy()
                if step % 50 == 0:
                    print(step, steps, totals.round(2), f"{(time.time() - started) / step:.2f} s/step", flush=True)
            score = mean_ap50(mean, val, len(names), 640) if epoch % args.every == args.every - 1 else float("nan")
            rows.writerow(
                [
                    epoch,
                    *(totals / (args.crops // args.batch)).round(4),
                    round(score, 4),
                    round((time.time() - started) / 60, 1),
                ]
            )
            log.flush()
            print(
                f"epoch {epoch}: val mAP50 {score:.4f} (best {best:.4f}), {(time.time() - started) / 60:.0f} min",
                flush=True,
            )
            if score > best:
                best = score
                save(mean, names, args.out / "best.pt", facts)
            save(mean, names, args.out / "last.pt", facts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--unlabelled", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/default"))
    parser.add_argument("--mix", type=float, nargs=3, default=[0.55, 0.25, 0.2], help="share of each group")
    parser.add_argument("--hard", type=float, nargs=3, default=[0.5, 0.5, 0.5], help="gains of box, cls, dfl")
    parser.add_argument("--soft", type=float, nargs=3, default=[4.0, 1.0, 2.0], help="gains of features, cls, box")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crops", type=int, default=4000, help="crops in an epoch")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--every", type=int, default=1, help="score every so many epochs")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
