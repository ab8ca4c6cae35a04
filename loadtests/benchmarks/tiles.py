"""`make bench-tiles`: what `tile` finds, how fast, and what a large photo costs the small ones beside it.

Accuracy: mosaics of COCO photos with and without tiles, beside their photos alone. Rate: the service with tiled mosaics
beside the loop in one process, which has the same tiles as small JPEGs. Fairness: eight clients with small photos,
alone and beside one that sends a tiled photo of 50 MP again and again. All over HTTP but the loop.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import psutil
from PIL import Image

from loadtests import clients, mosaics
from loadtests.benchmarks.accuracy import ASK, detect, score
from loadtests.benchmarks.bench import in_process
from loadtests.photo_mix import photos_of, resized
from loadtests.service import Service, config, free_port, running
from serve_app.settings import AppSettings, PredictOptions
from serve_app.vision import sample_photos
from serve_app.vision.tiles import Tiling
from serve_app.weights import loader

TILED = {"tile": "auto"}
PATH = "/v1/predict?tile=auto"
OVERLAP = PredictOptions().overlap


def accuracy(url: str, photos: list[Path], labels: Path, large: list[Path], folder: Path) -> None:
    """Prints the scores of the photos alone, and of the mosaics with and without tiles."""
    unlimited = {name: value for name, value in ASK.items() if name != "max_det"}  # a mosaic has nine photos' objects
    for what, images, marks, ask in (
        ("photos alone", photos, labels, ASK),
        ("mosaics", large, folder / "labels", ASK),
        ("mosaics, max_det 300, tile=auto", large, folder / "labels", ASK | TILED),
        *(
            (f"mosaics, tile=auto, {merge}", large, folder / "labels", unlimited | TILED | {"tile_merge": merge})
            for merge in ("uncut", "nms_iou", "nms_ios")
        ),
    ):
        strict, loose = score(images, marks, detect(url, images, ask))
        print(f"{what}: mAP50-95 {strict:.4f}, mAP50 {loose:.4f}", flush=True)


def as_small_photos(mosaic: bytes, size: int) -> list[bytes]:
    """The tiles of a photo as JPEGs, and the whole one in the size of a network input."""
    made = []
    with Image.open(io.BytesIO(mosaic)) as photo:
        tiling = Tiling("auto", OVERLAP, 10_000)
        pieces = [photo.crop(place) for place in tiling.places(*photo.size, size)]
        for piece in [*pieces, photo.resize((size, size))]:
            file = io.BytesIO()
            piece.save(file, "JPEG", quality=95)
            made.append(file.getvalue())
    return made


def rate(service: Service, large: list[Path], settings: dict[str, str], seconds: float, rounds: int) -> None:
    """Prints the rates in network inputs/s, those of the service as shares of the better loop in process."""
    args = AppSettings.model_validate(config(0)["applications"][0]["args"] | settings)
    pinned = loader.pin(args.weights, args)
    size, get = args.image_size or pinned.image_size, partial(loader.fetch, settings=args)
    loaded = loader.load(pinned.uri, get, task=pinned.task, settings=args, size=size, device="cpu", batch_sizes={1})
    content = [mosaic.read_bytes() for mosaic in large]
    small = [piece for mosaic in content for piece in as_small_photos(mosaic, size)]
    each = len(small) / len(content)
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for callers in (1, 2):
            name = f"in process, {callers}"
            found.setdefault(name, []).append(in_process(loaded, size, small, callers, seconds).rate)
        for count in (1, 4, 8):
            measured = clients.measure(service.url, content, count, seconds, service.pid, path=PATH)
            found.setdefault(f"service, {count} clients", []).append(measured.rate * each)
            print(f"{count} clients, {each:.0f} inputs a photo: {measured}", flush=True)
    best = max(statistics.median(found[f"in process, {callers}"]) for callers in (1, 2))
    for name, rates in found.items():
        middle = statistics.median(rates)
        print(f"{name}: {middle:.1f} inputs/s, {middle / best:.2f} of the better loop ({[round(r, 1) for r in rates]})")


@contextmanager
def beside(url: str, photo: bytes, seen: list[float]) -> Iterator[None]:
    """Sends a tiled photo again and again; `seen` gets the seconds of each answer."""
    over = threading.Event()

    def send() -> None:
        with httpx.Client(base_url=url, timeout=90) as http:
            while not over.is_set():
                started = time.perf_counter()
                http.post(PATH, content=photo, headers={"Content-Type": "image/jpeg"}).raise_for_status()
                seen.append(time.perf_counter() - started)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()


@contextmanager
def largest_process(pid: int, seen: list[float]) -> Iterator[None]:
    """Appends the most memory of one process of the service, in GB."""
    over, most = threading.Event(), 0

    def look() -> None:
        nonlocal most
        while not over.wait(0.1):
            for process in psutil.Process(pid).children(recursive=True):
                try:
                    most = max(most, process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        seen.append(most / 1e9)


def fairness(service: Service, small: list[bytes], seconds: float, rounds: int) -> None:
    """Prints p95 of eight clients with small photos, alone and beside a tiled photo of 50 MP, and the memory."""
    photo = resized(sample_photos.bus(), 7.56)  # 6,123 x 8,164
    ratios, large, memory = [], list[float](), dict[str, list[float]]()
    measure = partial(clients.measure, service.url, small, 8, seconds, service.pid)
    for _ in range(rounds):
        with largest_process(service.pid, memory.setdefault("alone", [])):
            alone = measure()
        with largest_process(service.pid, memory.setdefault("beside", [])), beside(service.url, photo, large):
            together = measure()
        ratios.append(together.p95 / alone.p95)
        print(f"alone: {alone}\nbeside 50 MP: {together}", flush=True)
    print(
        f"p95 beside one tiled photo of 50 MP: {statistics.median(ratios):.2f} times ({[round(r, 2) for r in ratios]})"
    )
    print(f"the photo itself took {statistics.median(large):.1f} s ({len(large)} answers)")
    print(f"most memory of one process, GB: { ({k: [round(v, 2) for v in values] for k, values in memory.items()}) }")


def main(photos: Path, labels: Path, weights: str, seconds: float, rounds: int) -> None:
    """Runs all three."""
    files = sorted(photos.glob("*.jpg"))
    files = files[: len(files) // mosaics.ACROSS**2 * mosaics.ACROSS**2]
    with tempfile.TemporaryDirectory() as name, running(config(free_port(), weights=weights)) as service:
        large = mosaics.write(files, labels, Path(name))
        accuracy(service.url, files, labels, large, Path(name))
        rate(service, large, {"weights": weights}, seconds, rounds)
        fairness(service, photos_of(photos), seconds, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of labelled JPEGs")
    parser.add_argument("--labels", type=Path, required=True, help="their labels in YOLO's format")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    main(**vars(parser.parse_args()))
