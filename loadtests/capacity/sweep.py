"""Measures a curve: Poisson arrivals at rising rates, until the service no longer keeps up (the knee)."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
import uvloop

from loadtests.capacity import trace
from loadtests.capacity.curve import QUIET, Curve, Step, follows
from loadtests.capacity.service_times import ServiceTimes
from loadtests.clients import Asked, offer, others_seconds
from loadtests.photo_mix import Photo
from loadtests.service import Service, detector, shipped
from serve_app.ops import serve_config

KEPT = 250  # largest number of values of a kind in a step; more become quantiles
PACKAGES = ("ray", "openvino", "torch", "image-recognition")
PEEK_S, PATIENCE = 2.0, 15  # looks for a quiet moment in windows of so many seconds, so many times
CORES = os.cpu_count() or 1


def measure(
    content: dict[str, Any], service: Service, photos: list[Photo], *, seconds: float, rounds: int, seed: int = 0
) -> Curve:
    """Raises the rate until the service no longer keeps up. Repeats all rates, because the machine is noisy."""
    rng = np.random.default_rng(seed)
    replicas = int(detector(content).get("num_replicas") or 1)
    warm = uvloop.run(offer(service.url, photos, np.arange(20) * 0.5))
    alone = float(np.median([one.done - one.sent for one in warm]))
    steps: list[Step] = []
    rate = 0.25 * replicas / alone
    while not steps or follows(steps[-1]):
        steps.append(step(service, photos, round(rate, 2), seconds, rng))
        rate *= 1.5 if len(steps) < 4 else 1.25  # coarse at low rates, fine near the knee
    steps += [step(service, photos, one.offered, seconds, rng) for one in steps * (rounds - 1)]
    user_config = detector(content)["user_config"]
    return Curve(
        measured=time.strftime("%Y-%m-%d %H:%M"),
        hardware=hardware(),
        engine=engine(service.url, content),
        versions={package: version(package) for package in PACKAGES},
        mix=dict(Counter(photo.name for photo in photos)),
        max_batch_size=user_config["max_batch_size"],
        batch_wait_timeout_s=user_config["batch_wait_timeout_s"],
        replicas=replicas,
        steps=sorted(steps, key=lambda one: one.offered),
    )


def fixed(difference: str, replicas: int) -> dict[str, Any]:
    """The shipped configuration with `difference` (YAML) merged over it, with so many replicas and no autoscaler."""
    content = shipped(difference)
    deployment = detector(content)
    deployment.pop("autoscaling_config", None)
    deployment["num_replicas"] = replicas
    serve_config.check(content)
    return content


class Offered(NamedTuple):
    """A run of Poisson arrivals, and the share of the machine that other processes used."""

    rate: float
    arrivals: trace.Times
    asked: list[Asked]
    others: float = 0.0


def offered(service: Service, photos: list[Photo], rate: float, seconds: float, rng: np.random.Generator) -> Offered:
    """Sends Poisson arrivals, after a wait of up to PATIENCE x PEEK_S for a moment when nothing else runs here."""
    for _ in range(PATIENCE):
        before = others_seconds(service.pid)
        time.sleep(PEEK_S)
        if others_seconds(service.pid) - before <= QUIET * PEEK_S * CORES:
            break
    arrivals = trace.steady(rate, seconds).arrivals(rng)
    began, before = time.monotonic(), others_seconds(service.pid)
    asked = uvloop.run(offer(service.url, photos, arrivals))
    others = (others_seconds(service.pid) - before) / (time.monotonic() - began) / CORES
    return Offered(rate, arrivals, asked, round(others, 3))


def step(service: Service, photos: list[Photo], rate: float, seconds: float, rng: np.random.Generator) -> Step:
    """Measures one rate; prints it as a line and returns it as a record. Raises ValueError."""
    found = step_of(offered(service, photos, rate, seconds, rng), seconds)
    print(
        f"{rate:8.2f} requests/s: {found.answered:8.2f} answered, p50 {found.p50_ms:7.1f}  p95 {found.p95_ms:7.1f} ms, "
        f"refused {found.refused}, failed {found.failed}, other processes used {found.others:.0%} of the machine",
        flush=True,
    )
    return found


def step_of(run: Offered, seconds: float) -> Step:
    """The record of a run: rates, percentiles, service times. Raises ValueError when nothing was answered."""
    asked = run.asked
    good = sorted((one for one in asked if one.status == httpx.codes.OK), key=lambda one: one.done)
    if not good:
        raise ValueError(f"no answer at {run.rate:g} requests/s: {Counter(one.status for one in asked)}")
    found = ServiceTimes.of(good)
    latency = [(one.done - one.sent) * 1000 for one in good]
    p50, p95, p99 = np.percentile(latency, [50, 95, 99]).round(1).tolist()
    statuses = Counter(one.status for one in asked)
    return Step(
        offered=run.rate, others=run.others, seconds=seconds,
        answered=round(sum(one.done <= seconds for one in good) / seconds, 3),
        sent=len(asked), refused=statuses[503], failed=len(asked) - len(good) - statuses[503],
        p50_ms=p50, p95_ms=p95, p99_ms=p99,
        ready_ms=fewer([one.stages_ms["preprocess"] for one in good]),
        alone_ms={size: fewer(values) for size, values in sorted(found.alone.items())},
        joined_ms={size: values[:KEPT] for size, values in sorted(found.joined.items())},
        behind_ms={size: fewer(values) for size, values in sorted(found.behind.items())},
        ranks=[round(rank, 3) for rank in found.ranks[:KEPT]],
    )  # fmt: skip


def fewer(values: list[float]) -> list[float]:
    """The values, sorted and rounded; of more than KEPT, KEPT quantiles."""
    kept = values if len(values) <= KEPT else np.quantile(values, (np.arange(KEPT) + 0.5) / KEPT).tolist()
    return [round(value, 1) for value in sorted(kept)]


def hardware() -> dict[str, str | int | float]:
    """The CPU, cores, memory in GB, and GPU of this machine."""
    cores = Path("/proc/cpuinfo")
    lines = cores.read_text().splitlines() if cores.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    found: dict[str, str | int | float] = {"cpu": cpu, "cores": CORES}
    found["memory_gb"] = round(psutil.virtual_memory().total / 1e9, 1)
    if smi := shutil.which("nvidia-smi"):
        command = [smi, "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")
        found |= {"gpu": names[0]} if names[0] else {}
    return found


def engine(url: str, content: dict[str, Any]) -> dict[str, str]:
    """The weights and device that the service reports, and its engine settings. Raises httpx.HTTPError."""
    model = httpx.get(f"{url}/v1/models", timeout=60, trust_env=False).raise_for_status().json()["models"][0]
    application = content["applications"][0]
    settings = {key: str(application["args"].get(key, "auto")) for key in ("engine", "precision")}
    reported = {key: str(model[key]) for key in ("name", "sha256", "device", "image_size")}
    return settings | reported | {"import_path": application["import_path"]}
