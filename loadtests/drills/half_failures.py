"""The drill's half failures: frozen processes, a store that fails, clients that hold connections, a deadly photo."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import httpx
import psutil

from loadtests.drills import clients, crashing_photo
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


def freeze(operator: Operator, pattern: str, *, for_good: bool = False) -> None:
    """Stops one process (SIGSTOP) for `seconds`, or until the service has replaced it by itself."""
    frozen = max(operator.processes(pattern), key=psutil.Process.create_time)  # an older HAProxy only drains
    frozen.suspend()
    try:
        if for_good:
            operator.until(lambda: not frozen.is_running())
        else:
            time.sleep(operator.seconds)
    finally:
        with suppress(psutil.NoSuchProcess):
            frozen.resume()
    operator.until(lambda: status(operator.service)["status"] == "RUNNING")


def swap_without_holder(operator: Operator) -> None:
    """Freezes the weights holder and swaps to weights that nobody has: the replica replaces the holder."""
    operator.good[1] = operator.versions.good().uri
    frozen = operator.processes(KILLED["weights holder"])[-1]
    frozen.suspend()
    try:
        operator.swap()
        operator.until(lambda: not frozen.is_running())
    finally:
        with suppress(psutil.NoSuchProcess):
            frozen.resume()


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


EVENTS: dict[str, Callable[[Operator], None]] = {
    "photo that kills its decoder": deadly_photo,
    **{f"freeze {name}": partial(freeze, pattern=pattern) for name, pattern in FROZEN.items()},
    **{f"freeze {name} for good": partial(freeze, pattern=KILLED[name], for_good=True) for name in FROZEN_FOR_GOOD},
    "freeze weights holder for good, then swap": swap_without_holder,
    "swap, and the store is slow": partial(swap_from, slow=10_000),
    "swap, and the store cuts its answers": partial(swap_from, cuts=10_000),
    "swap, and the store throttles": partial(swap_from, status=503),
    "connections that say nothing": lambda operator: clients.say_nothing(
        operator.service.url, SILENT, operator.seconds
    ),
    "clients that read slowly": lambda operator: clients.read_slowly(operator.service.url, SLOW, operator.seconds),
    "scale up and down all the time": flap,
}
