"""The stages as a pipeline of Ray Data, and the Ray that it runs in.

    parts ──decode──► network inputs ──Network──► candidates ──finish──► rows in DEST

Ray Data limits what is in memory, replaces workers that die, and runs their parts again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from serve_app.batch import stages
from serve_app.batch.part import Part, packed
from serve_app.batch.stages import Job
from serve_app.errors import AppError, CommandFailed, WeightsError
from serve_app.ops import preflight, service_folder
from serve_app.ops.signals import stop_on_signals
from serve_app.weights.identity import Weights

CPUS = 2  # of one worker without a GPU: as many threads; Ray books one for it and one for its decoder
# Parts that one worker has at a time (it unpacks one while the other is in the engine), and parts on their way to all
# of them. Their network inputs are the limit of Ray's memory.
IN_WORK, QUEUED = 2, 3
KNOWN = CommandFailed, WeightsError, AppError, OSError  # what the command line reports in one line
cluster: Any = ray  # Any, because Ray has no types for what a cluster has


@contextmanager
def connected(folder: Path | None) -> Iterator[None]:
    """Starts a Ray below `folder`, or connects to that of RAY_ADDRESS if it is None. Raises CommandFailed."""
    own: dict[str, Any] = {"address": "auto"}
    if folder:
        own = {"address": "local", "num_cpus": max(os.cpu_count() or 1, CPUS), "include_dashboard": False}
        own |= {"_temp_dir": str(folder / service_folder.RAY), "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(namespace="serve", logging_level=logging.WARNING, **own)
    except Exception as error:  # Ray has no class for it
        raise CommandFailed(f"Ray did not start: {preflight.one_line(error)}") from error
    stop_on_signals()  # because ray.init installs its own handlers
    try:
        with translated():
            yield
    finally:
        ray.shutdown()


def gpus() -> int:
    """GPUs of the cluster."""
    return int(cluster.cluster_resources().get("GPU", 0))


def nodes() -> int:
    """Nodes of the cluster that may work."""
    return sum(bool(node["Resources"].get("CPU")) for node in cluster.nodes() if node["Alive"])


def tried(job: Job) -> Weights:
    """The weights, after a worker has loaded them as the others will. Raises CommandFailed for those it refuses.

    It also makes what they need for int8, once.
    """
    trial: Any = ray.remote(num_gpus=min(gpus(), 1), max_calls=1)(lambda: stages.Network(job).weights)
    weights: Weights = ray.get(trial.remote())
    return weights


def run(job: Job, parts: Iterable[Part], workers: int | None) -> Iterator[dict[str, Any]]:
    """Runs the stages on these parts, and yields what `finish` says of each once it is written.

    Raises CommandFailed.
    """
    from ray import data  # takes 1 s, which a run that is complete does not need

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # `translated` says why a run stops, in one line
    on_gpu = gpus()
    if not on_gpu and job.settings.cpu_threads is None:
        job = replace(job, settings=job.settings.model_copy(update={"cpu_threads": CPUS}))
    at_most = workers or on_gpu or max(int(cluster.cluster_resources().get("CPU", 0)) // CPUS, 1)
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # else what a stage raises is text
    if not job.options.tile:  # the size of a photo's tiles is not known; Ray's own limit is half of its memory
        memory = (QUEUED + IN_WORK * at_most) * job.plan.part * 3 * job.plan.image_size**2
        context.execution_options.resource_limits = data.ExecutionResources.for_limits(object_store_memory=memory)
    pool = data.ActorPoolStrategy(
        min_size=1, max_size=at_most, max_concurrent_calls_per_actor=IN_WORK, enable_true_multi_threading=True
    )
    whole: Any = {"batch_format": "pyarrow", "batch_size": 1}  # a part is one row
    given = {"job": job}
    dataset: Any = data.from_arrow([packed(part) for part in parts])
    yield from (
        dataset.map_batches(stages.decode, fn_kwargs=given, num_cpus=0.75, **whole)
        .map_batches(
            stages.Network, fn_constructor_kwargs=given, num_cpus=1, num_gpus=int(on_gpu > 0), compute=pool, **whole
        )
        .map_batches(stages.finish, fn_kwargs=given, num_cpus=0.25, **whole)
        .iter_rows()
    )


@contextmanager
def translated() -> Iterator[None]:
    """Raises CommandFailed with what a stage raised, in one line, or with what Ray says."""
    try:
        yield
    except RayError as error:
        cause: BaseException | None = error
        while isinstance(cause, RayError) or (cause and not isinstance(cause, KNOWN)):
            cause = getattr(cause, "cause", None) or cause.__cause__
        # Ray Data adds to a message how a developer may have it tried again.
        what = str(cause).partition("\nFailed to ")[0] if cause else f"Ray: {preflight.one_line(error)[-500:]}"
        raise CommandFailed(what) from error
