"""`python -m loadtests.plane`: everything but the network, whose place a constant takes: how many cores feed a GPU."""

# No `from __future__ import annotations`: Serve reads the type of `args` at run time, and ignores a string.
import argparse
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.serve import Application

from loadtests import clients
from loadtests.mix import photos_of
from loadtests.service import ROOT, config, free_port, running
from serve_app import app, deployments, ingress, loader
from serve_app.configuration import apart
from serve_app.settings import AppSettings

GPUS = (1000, 3000)  # images/s: yolov8n in float16 on an L4, and on a larger one


class Constant:
    """One sure object, on every photo, at once."""

    device = "cpu"

    def __init__(self, class_names: tuple[str, ...], size: int) -> None:
        self.class_names = class_names
        self._head = np.zeros((6, size * size * 21 // 1024), np.float32)  # as many anchors as strides 8, 16, 32 have
        self._head[:5, 0] = size / 2, size / 2, size / 4, size / 4, 0.9

    def __call__(self, squares_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See Model."""
        return np.broadcast_to(self._head, (len(squares_nhwc), *self._head.shape))


def without_network(instead: type[Constant] = Constant) -> None:
    """In the process that would load it."""

    def engine(network: Any, sha256: str, settings: AppSettings, size: int, device: str) -> Constant:  # noqa: ANN401, ARG001
        from serve_app.model import names_of  # torch, as in the loader: only where a network was read

        return instead(names_of(network), size)

    loader.engine = engine


class Together(ingress.Together):
    """The shipped one, less the network."""

    instead = Constant

    def __init__(self, settings: AppSettings, weights: str, size: int) -> None:
        without_network(self.instead)
        super().__init__(settings, weights, size)


class Detector(deployments.Detector):
    """The shipped one, less the network."""

    def __init__(self, settings: AppSettings, weights: str, size: int) -> None:
        without_network()
        super().__init__(settings, weights, size)


def build(args: AppSettings) -> Application:
    """`app.build` with these two."""
    app.Together, app.Detector = Together, Detector  # type: ignore[attr-defined]
    return app.build(args)


def main(folder: Path | None, seconds: float, rounds: int) -> None:
    """Prints CPU-milliseconds per image of both placements."""
    os.environ["PYTHONPATH"] = str(ROOT)  # where the replicas find this module
    for placement in ("together", "apart"):
        content: dict[str, Any] = config(free_port())
        content = apart(content) if placement == "apart" else content
        content["applications"][0]["import_path"] = "loadtests.plane:build"
        with running(content) as service:
            found = [clients.measure(service.url, photos_of(folder), 32, seconds, service.pid) for _ in range(rounds)]
        for measured in found:
            print(f"{placement:9s}", measured, flush=True)
        spent = statistics.median(sum(v for k, v in m.cpu_ms.items() if k != "these clients") for m in found)
        cores = ", ".join(f"{gpu:,} img/s need {gpu * spent / 1000:.0f} cores" for gpu in GPUS)
        print(f"{placement}: {spent:.1f} CPU-ms an image, so {1000 / spent:.0f} images/s a core; {cores}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of JPEGs")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    main(asked.photos, asked.seconds, asked.rounds)
