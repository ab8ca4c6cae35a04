"""How a curve is measured: Poisson arrivals, load by load, until the service no longer follows: the knee."""

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
from loadtests.capacity.services import Services
from loadtests.clients import Asked, offer, others_seconds
from loadtests.mix import Photo
from loadtests.service import Service, detector, shipped
from serve_app import configuration

KEPT = 250  # numbers of one kind in one step: quantiles of more
PACKAGES = ("ray", "openvino", "torch", "image-recognition")
PEEK_S, PATIENCE = 2.0, 15  # a quiet moment is looked for so long, so often
CORES = os.cpu_count() or 1


def measure(
    content: dict[str, Any], service: Service, photos: list[Photo], *, seconds: float, rounds: int, seed: int = 0
) -> Curve:
    """Raises the load until the service no longer follows; then the same loads again, against a noisy machine."""
    rng = np.random.default_rng(seed)
    replicas = int(detector(content).get("num_replicas") or 1)
    warm = uvloop.run(offer(service.url, photos, np.arange(20) * 0.5))
    alone = float(np.median([one.done - one.sent for one in warm]))
    steps: list[Step] = []
    rate = 0.25 * replicas / alone
    while not steps or follows(steps[-1]):
        steps.append(step(service, photos, round(rate, 2), seconds, rng))
        rate *= 1.5 if len(steps) < 4 else 1.25  # coarse where nothing happens, fine towards the knee
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
    """The shipped configuration with YAML laid over it, on a free port, and so many replicas without an autoscaler."""
    content = shipped(difference)
    door = detector(content)
    door.pop("autoscaling_config", None)
    door["num_replicas"] = replicas
    configuration.check(content)
    return content


class Offered(NamedTuple):
    """What came of Poisson arrivals, and the part of the machine that others had."""

    rate: float
    arrivals: trace.Times
    asked: list[Asked]
    others: float = 0.0


def offered(service: Service, photos: list[Photo], rate: float, seconds: float, rng: np.random.Generator) -> Offered:
    """Waits for a moment in which nothing else works on this machine, but not for ever."""
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
    """One load, as a line and as a record."""
    found = step_of(offered(service, photos, rate, seconds, rng), seconds)
    print(
        f"{rate:8.2f} requests/s: {found.answered:8.2f} answered, p50 {found.p50_ms:7.1f}  p95 {found.p95_ms:7.1f} ms, "
        f"refused {found.refused}, failed {found.failed}, others took {found.others:.0%} of the machine",
        flush=True,
    )
    return found


def step_of(run: Offered, seconds: float) -> Step:
    """Rates, percentiles, and what `Server-Timing` and the order of the answers tell of F and S."""
    asked = run.asked
    good = sorted((one for one in asked if one.status == httpx.codes.OK), key=lambda one: one.done)
    if not good:
        raise ValueError(f"no answer at {run.rate:g} requests/s: {Counter(one.status for one in asked)}")
    found = Services.of(good)
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
    """KEPT quantiles of more values than that."""
    kept = values if len(values) <= KEPT else np.quantile(values, (np.arange(KEPT) + 0.5) / KEPT).tolist()
    return [round(value, 1) for value in sorted(kept)]


def hardware() -> dict[str, str | int | float]:
    """Of this machine."""
    cores = Path("/proc/cpuinfo")
    lines = cores.read_text().splitlines() if cores.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    found: dict[str, str | int | float] = {"cpu": cpu, "cores": CORES}
    found["memory_gb"] = round(psutil.virtual_memory().total / 1e9, 1)
    if smi := shutil.which("nvidia-smi"):
        typed = [smi, "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(typed, capture_output=True, text=True, check=False).stdout.split("\n")
        found |= {"gpu": names[0]} if names[0] else {}
    return found


def engine(url: str, content: dict[str, Any]) -> dict[str, str]:
    """What the service says of its weights, and what they run on."""
    model = httpx.get(f"{url}/v1/models", timeout=60, trust_env=False).raise_for_status().json()["models"][0]
    application = content["applications"][0]
    asked = {key: str(application["args"].get(key, "auto")) for key in ("engine", "precision")}
    told = {key: str(model[key]) for key in ("name", "sha256", "device", "image_size")}
    return asked | told | {"import_path": application["import_path"]}
