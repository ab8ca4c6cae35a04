"""The stages of the service as operators of Ray Data, for a part at a time.

    decode   tasks on CPUs         addresses → network inputs            Preprocessor
    Network  actors, on the GPUs   network inputs → candidates           what the Detector runs
    finish   tasks on CPUs         candidates → rows, written to DEST    Postprocessor

A photo that fails in one stage is its AppError in the next ones, and a row with an error in the end.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import ray

from serve_app.batch import rows
from serve_app.batch.attempts import Attempts
from serve_app.batch.part import Table, packed, unpacked
from serve_app.batch.plan import DRAWN, Plan
from serve_app.batch.storage import Storage
from serve_app.errors import AppError, CorruptImage
from serve_app.graph import weights_holder
from serve_app.graph.forward import Input, forward
from serve_app.graph.payloads import Detected, Prepared
from serve_app.graph.postprocessor import Postprocessor
from serve_app.graph.preprocessor import Preprocessor
from serve_app.settings import AppSettings, PredictOptions
from serve_app.vision.tasks.task import Found
from serve_app.weights import loader

logger = logging.getLogger("ray.serve")
READERS = 16  # photos that a decode task reads ahead, because a store takes 30 ms for each
BATCH = 16  # images of one forward pass on a GPU; on a CPU each image is one
LANES = 3  # batches of a worker at a time: one is filtered while two are in the engine
DEADLY = CorruptImage("the process that had the image in hand died, each time that it was tried")
Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Job:
    """What every stage must know."""

    plan: Plan
    dest: str
    settings: AppSettings

    @property
    def options(self) -> PredictOptions:
        """The options of each photo. Those that are to be drawn are, as with `format=image`."""
        return self.plan.asked.options.model_copy(update={"format": "image"} if self.plan.asked.drawn else {})


def decode(table: Table, job: Job) -> Table:
    """Reads and decodes the photos. Raises StoreFailed or OSError if their store fails."""
    preprocessor = Preprocessor(job.settings, job.plan.image_size, job.plan.task)
    storage, part = Storage(job.settings.s3_endpoint_url), unpacked(table)

    def read(source: str) -> bytes | AppError:
        try:
            return storage.read(source, job.settings.max_body_bytes)
        except AppError as error:
            return error

    def prepared(place: int, data: bytes | AppError) -> Prepared | AppError:
        if isinstance(data, AppError):
            return data
        if place in deadly:
            return DEADLY
        attempt.begins(place)
        return guarded(
            part.sources[place], lambda: preprocessor.prepare(data, job.options, job.settings.max_tiles, math.inf)
        )

    with Attempts(job.dest, "decode", part.number).noted() as (deadly, attempt):
        photos = [prepared(*one) for one in enumerate(ahead(read, part.sources, READERS))]
        attempt.ends()
        return packed(replace(part, photos=photos))


class Outcome(NamedTuple):
    """What a batch made of one input: its candidates; the number, the seconds and the size of the batch."""

    candidates: Found
    batch: int
    seconds: float
    batch_size: int


class Network:
    """Runs the network on parts. Loads the weights once; those in S3 come from the weights holder."""

    def __init__(self, job: Job) -> None:
        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU")
        self._loaded = loader.load(
            job.plan.weights, lambda uri: weights_holder.fetch(uri, job.settings), settings=job.settings,
            size=job.plan.image_size, task=job.plan.task, device="cuda" if gpus else "cpu", batch_sizes={1, BATCH},
        )  # fmt: skip
        self.weights = self._loaded.weights
        self._lanes = ThreadPoolExecutor(LANES)

    def __call__(self, table: Table) -> Table:
        """Turns network inputs into candidates, in batches of one shape as far as possible."""
        part = unpacked(table)
        photos = [one for one in part.photos if isinstance(one, Prepared)]
        inputs = [(input_hwc, one.options) for one in photos for input_hwc in one.inputs_hwc]
        order = sorted(range(len(inputs)), key=lambda n: inputs[n][0].shape)
        batches = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
        found = self._lanes.map(self._forward, itertools.count(), ([inputs[n] for n in batch] for batch in batches))
        outcomes = dict(zip(order, itertools.chain.from_iterable(found), strict=True))
        in_turn = (outcomes[n] for n in range(len(inputs)))
        done = [self._detected(one, in_turn) if isinstance(one, Prepared) else one for one in part.photos]
        return packed(replace(part, photos=done, weights=self.weights))

    def _forward(self, number: int, batch: list[Input]) -> list[Outcome]:
        found, took = forward(self._loaded, batch)
        return [Outcome(one, number, took, len(batch)) for one in found]

    def _detected(self, p: Prepared, outcomes: Iterator[Outcome]) -> Detected:
        """What the next outcomes, those of its own inputs, say of a photo."""
        own = list(itertools.islice(outcomes, len(p.inputs_hwc)))
        took = {one.batch: one.seconds for one in own}
        return Detected(
            [one.candidates for one in own], p.letterboxes, p.tile, p.options, p.photo, p.expires_at, self.weights,
            p.preprocess_s, 0.0, sum(took.values()), max(one.batch_size for one in own), "",
        )  # fmt: skip


def finish(table: Table, job: Job) -> dict[str, Any]:
    """Writes the rows of a part, and returns how many, and how many of them failed. Raises StoreFailed or OSError."""
    postprocess, storage, part = Postprocessor(job.settings), Storage(job.settings.s3_endpoint_url), unpacked(table)
    assert part.weights
    written = []
    with Attempts(job.dest, "finish", part.number).noted() as (deadly, attempt):
        for place, (source, one) in enumerate(zip(part.sources, part.photos, strict=True)):
            attempt.begins(place)
            found = DEADLY if place in deadly else one
            done = found if isinstance(found, AppError) else guarded(source, partial(postprocess.finish, found))
            written.append(rows.of(source, done, part.weights, job.options))
            if not isinstance(done, AppError) and done.drawn:
                number = part.number * job.plan.part + place
                storage.write(f"{job.dest}/{DRAWN}/{number:09d}-{short(source)}.jpg", done.drawn)
        attempt.ends()
    content = rows.encoded(written, job.plan.asked.format, job.plan.task)
    storage.write(f"{job.dest}/{job.plan.name(part.number)}", content)  # last: then the part counts as done
    return {"images": [len(written)], "errors": [json.dumps(rows.failed(written))]}


def short(source: str) -> str:
    """The name of a photo, cut so that a file's name of 255 bytes has room for it."""
    return source.rpartition("/")[2].encode()[:180].decode(errors="ignore")


def guarded(source: str, stage: Callable[[], Made]) -> Made | AppError:
    """What a stage makes of one photo, or the error of its row. A bug fails this photo only."""
    try:
        return stage()
    except AppError as error:
        return error
    except Exception:
        logger.exception("%s failed in a stage", source)
        return AppError("an error of the service itself: the output of its worker says more")


def ahead(function: Callable[[Item], Made], items: Iterable[Item], most: int) -> Iterator[Made]:
    """`map` in threads. Works at most `most` items ahead of the caller."""
    with ThreadPoolExecutor(most) as pool:
        waiting: deque[Future[Made]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
