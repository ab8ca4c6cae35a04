"""Rules about room: replicas must fit on the workers, batches in a replica, and messages in gRPC."""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.ops.overlay import Overlay, max_replicas, requested_resources
from serve_app.ops.rendered import Finding, Rendered

MESSAGE_BYTES = 4 * 2**20  # largest gRPC message between replicas in throughput mode


def batches(overlay: Overlay) -> Iterator[Finding]:
    """A replica must accept enough requests for the two batches it works on at a time."""
    for deployment in overlay.deployments:
        size = (deployment.get("user_config") or {}).get("max_batch_size", 1)
        if deployment.get("max_ongoing_requests", 5) < 2 * size:
            why = f"max_ongoing_requests of {deployment['name']} is too small for two batches of {size} (default: 5)"
            yield overlay.finding("max_ongoing_requests", why, f"set max_ongoing_requests to at least {2 * size}")


def replicas_fit(overlay: Overlay) -> Iterator[Finding]:
    """All replicas must fit on the workers, and no GPU may stay idle because CPUs are missing."""
    worker, workers = overlay.worker_capacity(), overlay.workers["maxReplicas"]
    cpu, gpu = (sum(requested_resources(d)[what] * max_replicas(d) for d in overlay.deployments) for what in worker)
    if cpu > worker["num_cpus"] * workers or gpu > worker["num_gpus"] * workers:
        why = f"The replicas request {cpu:g} CPUs and {gpu:g} GPUs, more than {workers} workers have: some never start"
        yield overlay.finding("maxReplicas", why, "allow more or larger workers, or fewer replicas")
    if gpu and worker["num_gpus"] and cpu / gpu > worker["num_cpus"] / worker["num_gpus"]:
        why = "GPUs stay idle, because the workers have too few CPUs for the replicas that would use them"
        yield overlay.finding("num_gpus", why, "reduce num_cpus of the replicas")


def head_runs_no_replicas(overlay: Rendered) -> Iterator[Finding]:
    """The head runs Ray's control plane, so no replica may run there."""
    if str(overlay.cluster["headGroupSpec"]["rayStartParams"].get("num-cpus")) != "0":
        why = "Replicas may run on the head and starve Ray's control plane"
        yield overlay.finding("headGroupSpec", why, 'set num-cpus: "0" in the head\'s rayStartParams')


def throughput_messages(overlay: Overlay) -> Iterator[Finding]:
    """In throughput mode, replicas exchange gRPC messages of at most 4 MiB (ray#62982)."""
    apart = overlay.args["placement"] == "apart"
    throughput_mode = overlay.env(overlay.pods()[1]).get("RAY_SERVE_THROUGHPUT_OPTIMIZED") == "1"
    if apart and throughput_mode and overlay.args["max_body_bytes"] > MESSAGE_BYTES:
        why = "Photos of more than 4 MiB end in status 500, because throughput mode sends them by gRPC (ray#62982)"
        yield overlay.finding("RAY_SERVE_THROUGHPUT_OPTIMIZED", why, "remove RAY_SERVE_THROUGHPUT_OPTIMIZED")


RULES = (batches, replicas_fit, head_runs_no_replicas, throughput_messages)
