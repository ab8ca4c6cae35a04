"""The drill's half failures: frozen processes, a store that fails, clients that hold connections, a deadly photo."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import httpx
import psutil

from loadtests.drills import crashing_photo, held_connections
from loadtests.drills.events import KILLED, Operator
from loadtests.service import deploy, detector, model, ray_files, status
from serve_app.vision import sample_photos

FROZEN = KILLED | {"GCS": "gcs/gcs_server", "raylet": "raylet/raylet"}
FROZEN_FOR_GOOD = ("replica", "HAProxy", "HAProxy's manager", "controller")
SILENT, SLOW = 500, 20  # connections
JPEG = {"Content-Type": "image/jpeg"}


def deadly_photo(operator: Operator) -> None:
    """Sends a photo that kills the process that decodes it: two die, the next one refuses it.

    Three die if HAProxy sends it to another replica before the lock of the first has ended: with two replicas, 1 of 34.
    """
    crashes = ray_files(operator.service).parent / crashing_photo.CRASHES
    before = crashes.stat().st_size if crashes.exists() else 0
    photo = sample_photos.bus() + str(before).encode() + crashing_photo.DEADLY
    answer = httpx.post(f"{operator.service.url}/v1/predict", content=photo, headers=JPEG, timeout=60, trust_env=False)
    assert "image_quarantined" in answer.text, f"{answer.status_code} {answer.headers} {answer.text[:300]}"
    assert crashes.stat().st_size - before in (2, 3)
    operator.until(lambda: status(operator.service)["status"] == "RUNNING")


@contextmanager
def frozen(operator: Operator, pattern: str) -> Iterator[psutil.Process]:
    """Stops the newest process that matches (SIGSTOP) until the block ends, if the service has not killed it."""
    process = max(operator.processes(pattern), key=psutil.Process.create_time)  # an older HAProxy only drains
    process.suspend()
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            process.resume()


def freeze(operator: Operator, pattern: str, *, for_good: bool = False) -> None:
    """Freezes one process for `seconds`, or until the service has replaced it by itself."""
    with frozen(operator, pattern) as process:
        if for_good:
            operator.until(lambda: not process.is_running())
        else:
            time.sleep(operator.seconds)
    operator.until(lambda: status(operator.service)["status"] == "RUNNING")


def swap_without_holder(operator: Operator) -> None:
    """Freezes the weights holder, then swaps to new weights. The replica has to replace the holder to get them."""
    operator.good[1] = operator.versions.good().uri
    with frozen(operator, KILLED["weights holder"]) as holder:
        operator.swap()
        operator.until(lambda: not holder.is_running())


def swap_from(operator: Operator, **faults: int) -> None:
    """Swaps to new weights while the store fails for `seconds`. Then they arrive without anybody's doing."""
    operator.good[1] = operator.versions.good().uri
    vars(operator.store).update(faults)
    try:
        operator.begin_swap()
        time.sleep(operator.seconds)
    finally:
        vars(operator.store).update(dict.fromkeys(faults, 0))
    operator.until(lambda: model(operator.service)["uri"] == operator.good[0])


def flap(operator: Operator) -> None:
    """Scales between one and three replicas every 5 s, without waiting for them, for twelve times `seconds`."""
    end = time.monotonic() + 12 * operator.seconds
    while time.monotonic() < end:
        for count in (3, 1):
            detector(operator.content)["num_replicas"] = count
            deploy(operator.service, operator.content)
            time.sleep(5)
    operator.apply()


def say_nothing(operator: Operator) -> None:
    """Holds SILENT connections for `seconds`."""
    held_connections.say_nothing(operator.service.url, SILENT, operator.seconds)


def read_slowly(operator: Operator) -> None:
    """Lets SLOW clients read their answers slowly, for `seconds`."""
    held_connections.read_slowly(operator.service.url, SLOW, operator.seconds)


EVENTS: dict[str, Callable[[Operator], None]] = {
    "photo that kills its decoder": deadly_photo,
    **{f"freeze {name}": partial(freeze, pattern=pattern) for name, pattern in FROZEN.items()},
    **{f"freeze {name} for good": partial(freeze, pattern=KILLED[name], for_good=True) for name in FROZEN_FOR_GOOD},
    "freeze weights holder for good, then swap": swap_without_holder,
    "swap, and the store is slow": partial(swap_from, slow=10_000),
    "swap, and the store cuts its answers": partial(swap_from, cuts=10_000),
    "swap, and the store throttles": partial(swap_from, status=503),
    "connections that say nothing": say_nothing,
    "clients that read slowly": read_slowly,
    "scale up and down all the time": flap,
}
