"""Recognises all photos of a folder or bucket, and writes one row for each."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from serve_app.batch.price import Instance
from serve_app.http import request_options
from serve_app.ops import ray_environment, service_folder
from serve_app.ops.signals import stop_on_signals
from serve_app.settings import ROOT, PredictOptions

OPTIONS = [name for name in PredictOptions.model_fields if name != "format"]  # of a request


def run(args: argparse.Namespace) -> int:
    """Runs the command. Returns its exit code. Raises CommandFailed, WeightsError, AppError or OSError."""
    given = {k: v for k, v in vars(args).items() if k in OPTIONS and v is not None}
    stop_on_signals()
    folder = None if os.environ.get("RAY_ADDRESS") else service_folder.make()
    try:
        if folder:
            for name, value in (ray_environment.local(folder) | ray_environment.BATCH).items():
                os.environ.setdefault(name, value)
            os.environ["TMPDIR"] = str(folder)
        from serve_app.batch import job  # after Ray's environment variables are set
        from serve_app.batch.plan import Asked
        from serve_app.batch.storage import absolute

        asked = Asked(
            source=absolute(args.source), weights=args.weights or "", options=request_options.parse(given),
            format=args.format, drawn=args.save,
        )  # fmt: skip
        request = job.Request(
            asked, absolute(args.out), args.config, args.part, args.workers, args.max_errors, args.instance
        )
        return job.run(request, folder)
    finally:
        if folder:
            service_folder.remove(folder)


def add(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    command.add_argument("source", metavar="SOURCE", help="a folder, glob or photo, s3://bucket/prefix, or a list")
    command.add_argument("--out", required=True, metavar="DEST", help="a folder, or s3://bucket/prefix")
    command.add_argument("--weights", help="as in the settings; those of the configuration when not given")
    command.add_argument("--format", choices=("parquet", "jsonl"), default="parquet", help="of the rows")
    command.add_argument(
        "--part",
        type=positive,
        metavar="N",
        help="photos in one file of rows, of a new run; 128, or 1 to 4 with --tile",
    )
    command.add_argument("--save", action="store_true", help="also write the photos, with what was found drawn")
    command.add_argument("--max-errors", type=int, metavar="N", help="stop when more photos failed")
    command.add_argument("--workers", type=positive, metavar="N", help="at most; one for each GPU, or for two CPUs")
    command.add_argument("--instance", type=Instance.parse, metavar="TYPE:PRICE/h", help="for the cost of a million")
    command.add_argument("--config", type=Path, default=ROOT / "serve_config.yaml")
    for option in OPTIONS:
        command.add_argument(f"--{option}", help="as in serve_app/API.md")
    command.set_defaults(run=run)


def positive(text: str) -> int:
    """A number above 0. Raises ValueError."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number
