"""One training step of train.py: learns from labels and from a teacher at once (distillation)."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss

from serve_app.vision.engines.checkpoint import names_of, read_checkpoint
from serve_app.weights.identity import sha256_of

HINTS = (2, 4, 6, 8, 9, 12, 15, 18, 21)  # last layers of YOLOv8's stages, where student and teacher are compared
SIZE = 416  # side of the network input in pixels, also for validation and pseudo-labels


def distillation(
    student: dict[str, Tensor], teacher: dict[str, Tensor], hints: list[tuple[Tensor, Tensor]], classes: list[int]
) -> Tensor:
    """The distance of the student from the teacher: losses of features, classes and boxes, each a weighted mean.

    Features: squared error over the teacher's variance, layer by layer (FitNets, arXiv:1412.6550). Classes: cross
    entropy with the teacher's scores as soft targets. Boxes: KL divergence of the 16-bin edge distributions,
    weighted by the teacher's best score (Localization Distillation, arXiv:2102.12252).
    """
    errors = [functional.mse_loss(s.float(), t.float()) / t.float().var().clamp(min=1e-3) for s, t in hints]
    every = teacher["scores"].float().sigmoid()
    target = every[:, classes]
    cls = functional.binary_cross_entropy_with_logits(student["scores"].float(), target, reduction="sum")
    weight = every.amax(1)  # (B, A), over all 80 classes: a box of any class counts
    log_p, log_q = (torch.unflatten(x["boxes"].float(), 1, (4, -1)).log_softmax(2) for x in (student, teacher))
    kl = functional.kl_div(log_p, log_q, reduction="none", log_target=True).sum(2).mean(1)
    soft_box = (kl * weight).sum() / weight.sum().clamp(min=1)
    return torch.stack([torch.stack(errors).mean(), cls / target.amax(1).sum().clamp(min=1), soft_box])


class Trainer:
    """Student, teacher, and the running average of the student's weights, which is the trained model.

    Raises ValueError when the teacher does not know one of the classes.
    """

    def __init__(self, args: argparse.Namespace, names: dict[int, str], steps: int) -> None:
        self.args, self.names = args, names
        self.teacher = read_checkpoint(args.teacher).to(memory_format=torch.channels_last).requires_grad_(False)
        known = names_of(self.teacher)
        if unknown := [n for n in names.values() if n not in known]:
            raise ValueError(f"the teacher does not know {', '.join(unknown)}: it can teach only its own classes")
        self.classes = [known.index(n) for n in names.values()]
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
        others = [p for p in self.student.parameters() if p.ndim <= 1]  # no weight decay for biases and norms
        groups = [{"params": weights, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, args.lr, total_steps=steps + 1, pct_start=0.05, final_div_factor=20
        )
        self.gains = torch.tensor([*args.hard, *args.soft])
        self.done = 0

    @staticmethod
    def _watch(network: DetectionModel) -> dict[int, Tensor]:
        """Records the output of each layer in HINTS; each forward pass replaces it."""
        seen: dict[int, Tensor] = {}
        for i in HINTS:
            network.model[i].register_forward_hook(lambda _m, _x, y, i=i: seen.__setitem__(i, y))
        return seen

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        """Runs one update; returns the six losses (box, cls, dfl, features, soft_cls, soft_box)."""
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
        torch.autograd.backward((losses * self.gains).sum())
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

    def state(self) -> dict[str, Any]:
        """All that a training needs to go on in another process, as `torch.load` reads it with `weights_only`."""
        parts = ("student", "average", "optimizer", "schedule")
        return {name: getattr(self, name).state_dict() for name in parts} | {"done": self.done}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state`. Raises RuntimeError or ValueError when it is another network's."""
        for name in ("student", "average", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.done = state["done"]

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Writes the average for the service, in fp16 and without training state, and its manifest. Raises OSError."""
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
