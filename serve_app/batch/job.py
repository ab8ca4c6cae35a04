"""The batch job: plans a run or goes on with one, has its missing parts made, reports, and sums up."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from serve_app.batch import pipeline, rows, sources
from serve_app.batch import plan as plans
from serve_app.batch.part import Part
from serve_app.batch.plan import SUMMARY, Asked, Plan
from serve_app.batch.price import Instance
from serve_app.batch.stages import Job
from serve_app.batch.storage import Storage
from serve_app.errors import CommandFailed
from serve_app.http import request_options
from serve_app.ops import preflight, serve_config
from serve_app.settings import AppSettings
from serve_app.weights import loader
from serve_app.weights.address import SCHEME

PART, TILED_PART = 128, 4  # photos in a part; one with tiles takes up to 0.3 GB of memory, with masks 1.2
READERS = 32  # threads that read the parts of earlier runs


@dataclass(frozen=True)
class Request:
    """The command's arguments."""

    asked: Asked
    dest: str
    config: Path
    part: int | None  # photos in a part of a new run
    workers: int | None
    max_errors: int | None
    instance: Instance | None


def run(request: Request, folder: Path | None) -> int:
    """Makes all parts that are missing, in a Ray below `folder`, or in that of RAY_ADDRESS. Returns the exit code, 0.

    Raises CommandFailed, WeightsError, AppError or OSError.
    """
    settings = settings_of(request)
    asked = {"weights": settings.weights, "settings": {name: getattr(settings, name) for name in plans.SETTINGS}}
    request = replace(request, asked=request.asked.model_copy(update=asked))
    storage = Storage(settings.s3_endpoint_url)
    plan = plans.read(request.dest, storage, request.asked)
    return go_on(plan, request, settings, storage, folder) if plan else begin(request, settings, storage, folder)


def go_on(plan: Plan, request: Request, settings: AppSettings, storage: Storage, folder: Path | None) -> int:
    """Makes what a known plan lacks."""
    if loader.pin(plan.weights, settings).sha256 != plan.sha256:
        raise CommandFailed(f"{plan.weights} has changed since {request.dest} was begun: choose another --out")
    missing = plans.missing(plan, request.dest, storage)
    with pipeline.connected(folder) if missing else nullcontext():
        return make(job_of(plan, request, settings), missing, storage, request)


def begin(request: Request, settings: AppSettings, storage: Storage, folder: Path | None) -> int:
    """Makes a new plan, after a test of the weights and of the options, and then all that it asks for."""
    found = sources.found(request.asked.source, storage)
    for reason, count in found.left_out.items():
        print(f"{count} left out, {reason}")
    on_disk = [address for address in (request.dest, *found.photos) if not address.startswith(SCHEME)]
    if on_disk and folder is None:
        raise CommandFailed(f"{on_disk[0]} is on one machine's disk, and this is a cluster: use s3:// for all")
    pinned = loader.pin(settings.weights, settings)
    default = PART if not request.asked.options.tile else 1 if pinned.task == "segment" else TILED_PART
    plan = Plan(
        asked=request.asked, weights=pinned.uri, sha256=pinned.sha256, task=pinned.task, precision=settings.precision,
        image_size=settings.image_size or pinned.image_size, images=len(found.photos), part=request.part or default,
        left_out=dict(found.left_out),
    )  # fmt: skip
    with pipeline.connected(folder):
        weights = pipeline.tried(Job(plan, request.dest, settings))
        request_options.check(plan.asked.options, weights)
        plan = plan.model_copy(update={"precision": weights.precision})
        plans.write(plan, found.photos, request.dest, storage)
        missing = plans.missing(plan, request.dest, storage)
        return make(job_of(plan, request, settings), missing, storage, request)


def job_of(plan: Plan, request: Request, settings: AppSettings) -> Job:
    """What the stages must know; the network runs in the precision of the plan. float16 is a GPU's own choice."""
    fixed = {} if plan.precision == "float16" else {"precision": plan.precision}
    return Job(plan, request.dest, settings.model_copy(update=fixed))


def make(job: Job, missing: list[tuple[int, list[str]]], storage: Storage, request: Request) -> int:
    """Makes the parts that are missing, with a progress bar, and reports. Returns 0.

    Raises CommandFailed for too many errors, or what a stage raises.
    """
    parts = [Part(number, photos) for number, photos in missing]
    errors = errors_before(job, storage, {part.number for part in parts})
    check_errors(errors, request.max_errors)
    left = sum(len(part.sources) for part in parts)
    began = time.perf_counter()
    with tqdm(total=job.plan.images, initial=job.plan.images - left, unit="photo", smoothing=0) as bar:
        for done in pipeline.run(job, parts, request.workers) if parts else ():
            errors += Counter(json.loads(done["errors"]))
            bar.set_postfix_str(listed(errors), refresh=False)
            bar.update(done["images"])
            check_errors(errors, request.max_errors)
    if lost := plans.missing(job.plan, job.dest, storage):
        raise CommandFailed(
            f"{len(lost)} parts were written and are not in {job.dest}: is it on another machine's disk?"
        )
    summary = summed_up(job.plan, errors, left, time.perf_counter() - began, request.instance)
    if left:
        storage.write(f"{job.dest}/{SUMMARY}", json.dumps(summary, indent=2).encode())
    print(f"{text(summary)}\nthe rows are in {job.dest}")
    return 0


def check_errors(errors: Counter[str], most: int | None) -> None:
    """Raises CommandFailed if more photos failed than are allowed."""
    if most is not None and errors.total() > most:
        raise CommandFailed(f"{errors.total()} photos failed, {listed(errors)}: more than --max-errors")


def settings_of(request: Request) -> AppSettings:
    """The settings of the service's configuration, with the weights of the command. Raises CommandFailed."""
    difference = os.environ.get("SERVE_CONFIG_DIFFERENCE", "")
    with preflight.reported(request.config, difference):
        content = serve_config.load(request.config, difference)
        args = content["applications"][0]["args"]
        given = {"weights": request.asked.weights} if request.asked.weights else {}
        return AppSettings.model_validate(args | given)


def errors_before(job: Job, storage: Storage, missing: Container[int]) -> Counter[str]:
    """The errors in the parts that are there. Raises CommandFailed if one is not what it should be."""

    def errors(number: int) -> Counter[str]:
        name = f"{job.dest}/{job.plan.name(number)}"
        try:
            count, found = rows.counted(storage.read(name), job.plan.asked.format)
        except (ValueError, KeyError, TypeError) as error:  # Arrow's errors are ValueErrors
            raise CommandFailed(f"{name} is damaged: delete it") from error
        if count != job.plan.photos(number):
            raise CommandFailed(f"{name} has {count} rows instead of {job.plan.photos(number)}: delete it")
        return found

    with ThreadPoolExecutor(READERS) as pool:
        there = (number for number in range(job.plan.parts) if number not in missing)
        return sum(pool.map(errors, there), Counter[str]())


def summed_up(plan: Plan, errors: Counter[str], made: int, took: float, instance: Instance | None) -> dict[str, Any]:
    """The summary: of the whole run, and of this command the rate and what a million photos cost."""
    summary: dict[str, Any] = {"images": plan.images, "failed": dict(errors), "left_out": plan.left_out}
    if made:
        rate, nodes = made / took, pipeline.nodes()
        summary["last"] = {"images": made, "seconds": round(took, 1), "images_per_s": round(rate, 2), "nodes": nodes}
        if instance:
            price = round(instance.per_million(nodes, rate), 2)
            summary["last"] |= {"instance": instance.name, "hourly": instance.hourly, "price_per_million": price}
    return summary


def text(summary: dict[str, Any]) -> str:
    """The summary for people."""
    errors, last = Counter(summary["failed"]), summary.get("last")
    lines = [f"{summary['images']} photos, {errors.total()} failed{f': {listed(errors)}' if errors else ''}"]
    if last:
        plural = "s" if last["nodes"] > 1 else ""
        lines.append(
            f"{last['images']} of them now, in {last['seconds']:.0f} s: {last['images_per_s']:.1f} photos/s "
            f"on {last['nodes']} node{plural}"
        )
        if "instance" in last:
            lines.append(f"a million cost {last['price_per_million']:,.2f} on {last['instance']}")
    return "\n".join(lines)


def listed(errors: Counter[str]) -> str:
    """Errors by their code, the most frequent first."""
    return ", ".join(f"{code} {count}" for code, count in sorted(errors.items(), key=lambda one: (-one[1], one[0])))
