"""`make bench`: compares the service with its own engine. Measurements alternate, because the machine is noisy.

It measures the engine alone; JPEG to boxes in one process, without Ray or HTTP, for one and two callers; and the
service. The last two also run with photos of 12 MP, for two callers. Each rate is compared with the better one in
process, that of one client with one caller's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from loadtests import clients
from loadtests.clients import Measured, summary
from loadtests.photo_mix import photos_of, resized
from loadtests.service import config, free_port, running
from serve_app.settings import AppSettings
from serve_app.vision import image, sample_photos
from serve_app.vision.tasks.task import recognise
from serve_app.weights import loader
from serve_app.weights.loader import Loaded

Results = dict[str, list[Measured]]
LARGE = "12 MP"


def in_process(loaded: Loaded, size: int, content: list[bytes], callers: int, seconds: float) -> Measured:
    """JPEG to boxes with the service's own functions, in as many threads as there are callers."""

    def once(n: int) -> None:
        task = loaded.engine.task
        network_input, letterbox = image.prepare(content[n % len(content)], size, 52_000_000, crops=task.crops)
        recognise(task, loaded.engine(network_input[None])[0], letterbox, 0.25)

    return loop(once, seconds, callers)


def loop(once: Callable[[int], object], seconds: float, callers: int = 1) -> Measured:
    """Calls `once` with 0, 1, 2 … for `seconds`, after three calls that are not counted."""
    for n in range(3):
        once(n)
    times: list[float] = []
    begun, cpu = time.perf_counter(), time.process_time()

    def call(_: int) -> None:
        while (started := time.perf_counter()) < begun + seconds:
            once(len(times))
            times.append(time.perf_counter() - started)

    with ThreadPoolExecutor(callers) as pool:  # PyTorch is faster from the main thread, which is one of the callers
        others = [pool.submit(call, n) for n in range(1, callers)]
        call(0)
        for other in others:
            other.result()
    return summary(times, time.perf_counter() - begun, 0, {"this process": time.process_time() - cpu})


def run(content: list[bytes], counts: list[int], seconds: float, rounds: int, settings: dict[str, Any]) -> Results:
    """All measurements, one after the other, `rounds` times. Raises NotStarted, WeightsError."""
    args = AppSettings.model_validate(config(0)["applications"][0]["args"] | settings)
    pinned = loader.pin(args.weights, args)
    size = args.image_size or pinned.image_size
    get = partial(loader.fetch, settings=args)
    loaded = loader.load(pinned.uri, get, task=pinned.task, settings=args, size=size, device="cpu", batch_sizes={1})
    network_input = image.prepare(content[0], size, 52_000_000)[0][None]
    large = [resized(sample_photos.bus(), 3.7)]  # 2,997 x 3,996
    found: Results = {}
    with running(config(free_port(), **settings)) as service:
        measures: dict[str, Callable[[], Measured]] = {
            "engine": partial(loop, lambda _: loaded.engine(network_input), seconds),
            "in process": partial(in_process, loaded, size, content, 1, seconds),
            "in process, two": partial(in_process, loaded, size, content, 2, seconds),
        }
        for count in counts:
            measures[f"{count} clients"] = partial(clients.measure, service.url, content, count, seconds, service.pid)
        measures[f"in process, {LARGE}"] = partial(in_process, loaded, size, large, 2, seconds)
        measures[f"8 clients, {LARGE}"] = partial(clients.measure, service.url, large, 8, seconds, service.pid)
        for _ in range(rounds):
            for name, measure in measures.items():
                found.setdefault(name, []).append(measure())
                print(f"{name:19s}", found[name][-1], flush=True)
    return found


def table(found: Results) -> None:
    """Prints medians, with the ratio of each rate to that of the in-process loop on the same photos."""
    rounds = max(map(len, found.values()))
    print(f"\n{'median of ' + str(rounds):19s}  img/s   ÷ in process   p50 ms   p95 ms   p99 ms")
    for name, several in found.items():
        one, two, both = (
            statistics.median(m.rate for m in found[f"in process{callers}"]) for callers in ("", ", two", f", {LARGE}")
        )
        base = both if LARGE in name else one if name in ("engine", "1 clients") else max(one, two)
        rate = statistics.median(m.rate for m in several)
        p50, p95, p99 = (statistics.median(getattr(m, p) for m in several) for p in ("p50", "p95", "p99"))
        print(f"{name:19s} {rate:6.1f}   {rate / base:12.2f} {p50:8.1f} {p95:8.1f} {p99:8.1f}")


def plot(found: Results, path: Path) -> None:
    """Draws rates and latencies over the number of clients. Needs matplotlib, which the `load` extra installs."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    counts = {int(name.split()[0]): several for name, several in found.items() if name.endswith("clients")}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(list(counts), [statistics.median(m.rate for m in s) for s in counts.values()], "o-", label="service")
    for name, style in (("engine", ":"), ("in process", "--"), ("in process, two", "-.")):
        left.axhline(statistics.median(m.rate for m in found[name]), ls=style, color="grey", label=name)
    for p in ("p50", "p95", "p99"):
        right.plot(list(counts), [statistics.median(getattr(m, p) for m in s) for s in counts.values()], "o-", label=p)
    left.set(xlabel="clients", ylabel="images/s", xscale="log", ylim=0)
    right.set(xlabel="clients", ylabel="ms", xscale="log", yscale="log")
    for axes in (left, right):
        axes.set_xticks(list(counts), map(str, counts))
        axes.minorticks_off()
        axes.legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of JPEGs")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the application")
    parser.add_argument("--plot", type=Path, default=Path("bench.png"))
    args = parser.parse_args()
    changed = dict(s.split("=", 1) for s in args.set)
    results = run(photos_of(args.photos), args.clients, args.seconds, args.rounds, changed)
    table(results)
    plot(results, args.plot)
