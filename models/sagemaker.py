"""Trains as SageMaker asks for it: `docker run IMAGE train`, with /opt/ml mounted.

    input/config/hyperparameters.json   options of train.py, as strings: {"epochs": "28", "mix": "0.5 0.3 0.2"}
    input/config/resourceconfig.json    the hosts; this trainer uses one
    input/data/training/                a YOLO data set: data.yaml, and what that names
    input/data/teacher/                 one `.pt`: the teacher
    input/data/start/                   optional, one `.pt`: the weights to start from
    input/data/unlabelled/              optional: photos without labels
    checkpoints/                        SageMaker copies it to S3 at once, and back into the job that goes on
    model/                              the result: best.pt with its manifest best.json, curve.csv, facts.json
    output/failure                      why it failed; SageMaker shows the first 1,024 characters

Exit code 0 means done or stopped, 1 failed. To stop a job, or to take a spot instance back, SageMaker sends SIGTERM and
120 seconds later SIGKILL. The step in work is finished and kept in `checkpoints`, the best model so far in `model`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import traceback
from argparse import ArgumentError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser

RESULTS = ("best.pt", "best.json", "curve.csv", "facts.json")
FROM_FILES = {"data", "teacher", "start", "unlabelled", "out"}  # options that are no hyperparameters
SHOWN = 1024  # characters of the failure file that DescribeTrainingJob returns


def main() -> int:
    """Trains, and returns the exit code. Outside SageMaker its toolkit's SAGEMAKER_BASE_DIR stands for /opt/ml."""
    base = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
    stop = threading.Event()
    # Before torch, which takes seconds to import: until there is a handler, process 1 of a container ignores SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    from models import train

    try:
        options = arguments(base, train.parser())
        train.train(options, stop.is_set)
        publish(options.out, base / "model")
    except Exception as error:  # noqa: BLE001 - whatever it is, the job's owner must be able to read it
        traceback.print_exc()
        failure = base / "output" / "failure"
        failure.parent.mkdir(parents=True, exist_ok=True)
        failure.write_text(f"{type(error).__name__}: {error}"[:SHOWN])
        return 1
    return 0


def arguments(base: Path, parser: ArgumentParser) -> Namespace:
    """The options of train.py for the job below `base`. Raises ValueError for what this trainer cannot do."""
    config, channels = base / "input" / "config", base / "input" / "data"
    hosts = json.loads((config / "resourceconfig.json").read_text())["hosts"]
    if len(hosts) > 1:
        raise ValueError(f"this trainer uses one instance, not {len(hosts)}")
    typed = ["--data", str(only(channels / "training", "data.yaml"))]
    typed += ["--teacher", str(only(channels / "teacher", "*.pt"))]
    typed += ["--out", str(base / "checkpoints"), "--threads", str(os.cpu_count())]
    if (channels / "start").exists():
        typed += ["--start", str(only(channels / "start", "*.pt"))]
    if (channels / "unlabelled").exists():
        typed += ["--unlabelled", str(channels / "unlabelled")]
    allowed = vars(parser.parse_args(typed)).keys() - FROM_FILES
    hyperparameters: dict[str, str] = json.loads((config / "hyperparameters.json").read_text())
    if unknown := sorted(hyperparameters.keys() - allowed):
        raise ValueError(f"unknown hyperparameters {', '.join(unknown)}: use {', '.join(sorted(allowed))}")
    for name, value in hyperparameters.items():
        typed += [f"--{name}", *value.split()]
    try:
        return parser.parse_args(typed)
    except ArgumentError as error:
        raise ValueError(f"hyperparameters: {error}") from error


def only(channel: Path, pattern: str) -> Path:
    """The one file of a channel. Raises ValueError when there is none, or more than one."""
    found = sorted(channel.glob(pattern))
    if len(found) != 1:
        raise ValueError(f"channel `{channel.name}` needs one {pattern}, and has {len(found)}")
    return found[0]


def publish(out: Path, model: Path) -> None:
    """Copies what there is of the result to the folder that SageMaker uploads. Raises OSError."""
    model.mkdir(parents=True, exist_ok=True)
    for name in RESULTS:
        if (out / name).exists():
            shutil.copy(out / name, model / name)


if __name__ == "__main__":
    sys.exit(main())
