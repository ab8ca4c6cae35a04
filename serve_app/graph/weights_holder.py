"""The weights holder: an actor that keeps weights from S3 in Ray's object store.

It makes one download per cluster and one copy per node. It is a detached, named actor instead of one of Serve's
`deployment_actors`, for three reasons. It exists only where weights come from S3. It outlives a redeploy, which would
download again. After its death the next caller starts it at once, without waiting for the controller's next health
check. Its state is a cache: disk or S3 has all of it.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, RayTaskError

from serve_app import __version__
from serve_app.errors import UnreachableStore
from serve_app.settings import AppSettings
from serve_app.weights import loader
from serve_app.weights.address import SCHEME
from serve_app.weights.identity import Pinned

logger = logging.getLogger("ray.serve")
NAMESPACE, NAME = "serve", f"weights-holder-{__version__}"  # another release's holder may differ
KEPT = 3  # objects: the previous, the live and the next weights
TRIES, PAUSE_S = 3, 0.5  # the pause, because Ray keeps a dead actor's name for a moment
THREADS = 16  # callers it serves at a time, so that a slow download holds up nobody who wants other weights
ALIVE_S = 10.0  # how often a caller that waits asks whether the holder lives, ...
SILENT_S = 30.0  # ... and how long it may take to say so: Ray starts it in 1-10 s


class WeightsHolder:
    """Resolves each address once, and keeps the newest KEPT (3) weights in the object store."""

    def __init__(self) -> None:
        self._pinned: dict[str, Pinned] = {}  # an address without a version must mean the same to all replicas
        self._held: dict[str, Any] = {}  # sha256 → reference
        self._last_live: dict[str, str] = {}  # by application
        self._locks: dict[str, threading.Lock] = {}  # by address, and by sha256

    @ray.method(concurrency_group="alive")
    def alive(self) -> None:
        """Does nothing. An answer means that the holder is not frozen; it has a thread of its own."""

    def _one_at_a_time(self, what: str) -> threading.Lock:
        return self._locks.setdefault(what, threading.Lock())

    def fetch(self, uri: str, settings: AppSettings, anew: bool) -> tuple[Pinned, list[Any]]:
        """Returns the pinned identity and a reference to the bytes; `anew` replaces an object that was lost.

        The reference is in a list, because Ray would replace a bare one by the bytes. Raises WeightsError.
        """
        with self._one_at_a_time(uri):
            pinned = self._pinned.get(uri) or loader.pin(uri, settings)
            with self._one_at_a_time(pinned.sha256):
                held = None if anew else self._held.get(pinned.sha256)
                if held is None:
                    content = np.frombuffer(loader.content(pinned, settings), np.uint8)
                    held = ray.put(content)  # readers map an array, but would copy bytes
                    self._held.pop(pinned.sha256, None)
                    self._held[pinned.sha256] = held
            self._pinned[uri] = self._pinned[pinned.uri] = pinned
        for old in list(self._held)[:-KEPT]:
            self._held.pop(old, None)
        return pinned, [held]

    def record_live(self, application: str, uri: str) -> None:
        """Remembers the weights that a replica of this application made live last."""
        self._last_live[application] = uri

    def last_live(self, application: str) -> str | None:
        """What a new replica of this application serves if its configured weights are refused."""
        return self._last_live.get(application)


def actor() -> Any:  # noqa: ANN401 - Ray has no type for an actor with options
    """The holder; starts it if necessary. It books no CPU, because it works only while weights change."""
    return (
        ray.remote(concurrency_groups={"alive": 1})(WeightsHolder)  # type: ignore[call-overload]
        .options(
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_concurrency=THREADS,
        )
        .remote()
    )


def answer(reference: Any) -> Any:  # noqa: ANN401 - whatever the holder answers
    """What the holder answers, however long it works on it, as long as it lives.

    Raises RayActorError if it has died, and GetTimeoutError if it is frozen; then it is killed. Raises what it raised.
    """
    while not ray.wait([reference], timeout=ALIVE_S)[0]:
        holder = actor()
        try:
            ray.get(holder.alive.remote(), timeout=SILENT_S)
        except GetTimeoutError:
            ray.kill(holder)
            raise
    return ray.get(reference)


def fetch(uri: str, settings: AppSettings) -> loader.Content:
    """The pinned identity and its bytes, from a local file, or mapped from the holder's object. Raises WeightsError.

    If the holder dies or freezes, or its object is lost with it, tries again, at most TRIES (3) times in all.
    """
    if not uri.startswith(SCHEME):
        return loader.fetch(uri, settings)
    lost = False
    for _ in range(TRIES):
        try:
            pinned, (reference,) = answer(actor().fetch.remote(uri, settings, lost))
            return pinned, memoryview(ray.get(reference))
        except RayTaskError as error:
            raise error.cause from error  # the WeightsError that the holder raised
        except (RayActorError, ObjectLostError, GetTimeoutError) as error:
            lost = True
            logger.warning("the weights holder or its object is lost, trying again: %s", error)
            time.sleep(PAUSE_S)
    raise UnreachableStore(f"{uri}: the weights holder died {TRIES} times in a row: deploy again")


def record_live(uri: str) -> None:
    """Tells the holder which weights are live. Does nothing for local files, which need no holder.

    Without the holder it logs an error: the weights are live already, and only a new replica would ask for them.
    """
    if uri.startswith(SCHEME):
        try:
            actor().record_live.remote(application(), uri)
        except RayError:
            logger.exception("the weights holder does not know that %s is live", uri)


def last_live() -> str | None:
    """The last weights from S3 that a replica of this application made live. None if the holder knows none, or died."""
    try:
        uri: str | None = answer(actor().last_live.remote(application()))
    except (RayActorError, GetTimeoutError):
        return None
    return uri


def application() -> str:
    """The application of this replica."""
    return serve.get_replica_context().app_name
