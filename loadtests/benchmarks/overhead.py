"""`make overhead`: measures the service with a constant in place of the network.

Its CPU time per image says how many cores one GPU needs.
"""

# No `from __future__ import annotations`: Serve reads the type of `args` at run time and ignores a string.
import argparse
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray.serve import Application

from loadtests import clients
from loadtests.photo_mix import photos_of
from loadtests.service import ROOT, config, free_port, running
from serve_app import app
from serve_app.graph import detector
from serve_app.http import ingress
from serve_app.ops.serve_config import apart
from serve_app.settings import AppSettings
from serve_app.vision.engines.engine import Engine, Images
from serve_app.vision.tasks.by_name import TASKS
from serve_app.vision.tasks.task import Output
from serve_app.weights import loader

GPUS = (1000, 3000)  # images/s of yolov8n in float16: on an L4, and on a larger GPU


class InstantEngine:
    """An engine that returns one object with score 0.9 on every photo, in no time."""

    device, precision = "cpu", "float32"
    task = TASKS["detect"]

    def __init__(self, class_names: tuple[str, ...], size: int) -> None:
        self.class_names = class_names
        self._head = np.zeros((6, size * size * 21 // 1024), np.float32)  # all anchors of strides 8, 16 and 32
        self._head[:5, 0] = size / 2, size / 2, size / 4, size / 4, 0.9

    def __call__(self, images: Images) -> Sequence[Output]:
        """See `Engine`."""
        return [(self._head,)] * len(images)


def without_network(instead: type[InstantEngine] = InstantEngine) -> None:
    """Makes this process build this engine instead of one that runs the network."""

    def build(network: Any, settings: AppSettings, size: int, device: str, ranges: Any = None) -> Engine:  # noqa: ANN401, ARG001
        from serve_app.vision.engines.checkpoint import names_of  # imports torch; the process has read a network

        return instead(names_of(network), size)

    loader.build = build  # type: ignore[attr-defined]


class SingleProcessIngress(ingress.SingleProcessIngress):
    """The shipped SingleProcessIngress, without the network."""

    instead = InstantEngine

    def __init__(self, settings: AppSettings, weights: str, size: int, task: str) -> None:
        without_network(self.instead)
        super().__init__(settings, weights, size, task)


class Detector(detector.Detector):
    """The shipped Detector, without the network."""

    def __init__(self, settings: AppSettings, weights: str, size: int, task: str) -> None:
        without_network()
        super().__init__(settings, weights, size, task)


def build(args: AppSettings) -> Application:
    """`app.build` with these two deployments."""
    app.SingleProcessIngress, app.Detector = SingleProcessIngress, Detector  # type: ignore[attr-defined]
    return app.build(args)


def main(folder: Path | None, seconds: float, rounds: int) -> None:
    """Prints the CPU-milliseconds per image of both placements."""
    os.environ["PYTHONPATH"] = str(ROOT)  # the replicas import this module from here
    for placement in ("together", "apart"):
        content: dict[str, Any] = config(free_port())
        content = apart(content) if placement == "apart" else content
        content["applications"][0]["import_path"] = "loadtests.benchmarks.overhead:build"
        with running(content) as service:
            found = [clients.measure(service.url, photos_of(folder), 32, seconds, service.pid) for _ in range(rounds)]
        for measured in found:
            print(f"{placement:9s}", measured, flush=True)
        spent = statistics.median(sum(v for k, v in m.cpu_ms.items() if k != "these clients") for m in found)
        cores = ", ".join(f"{gpu:,} img/s need {gpu * spent / 1000:.0f} cores" for gpu in GPUS)
        print(f"{placement}: {spent:.1f} CPU-ms per image, {1000 / spent:.0f} images/s per core; {cores}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of JPEGs")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    main(args.photos, args.seconds, args.rounds)
