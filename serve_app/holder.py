"""One download per cluster and one copy per node: an actor that keeps weights from S3 in Ray's object store.

A detached, named actor and not Serve's `deployment_actors`: it exists only where weights come from S3, outlives a
redeploy (which would download again), and whoever needs it after its death starts it again at that moment, instead of
waiting for the controller's next health check. Its state is a cache: everything can be had again from disk or S3.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from serve_app import __version__, loader
from serve_app.errors import UnreachableStore
from serve_app.settings import AppSettings
from serve_app.store import SCHEME
from serve_app.weights import Pinned

logger = logging.getLogger("ray.serve")
NAMESPACE, NAME = "serve", f"weights-holder-{__version__}"  # another version's holder may speak another language
KEPT = 3  # objects: the live weights, those before, those to come
TRIES, PAUSE_S = 3, 0.5  # a dead actor keeps its name for a moment


class Holder:
    """Knows what each address was resolved to, once, and holds the newest few in the object store."""

    def __init__(self) -> None:
        self._pinned: dict[str, Pinned] = {}  # an address without a version means the same for all replicas
        self._held: dict[str, Any] = {}  # sha256 → reference
        self._accepted: str | None = None

    def fetch(self, uri: str, settings: AppSettings, anew: bool) -> tuple[Pinned, list[Any]]:
        """The identity, and a reference in a list, so that Ray passes it on instead of the bytes."""
        pinned = self._pinned.get(uri) or loader.pin(uri, settings)
        if anew or pinned.sha256 not in self._held:
            content = np.frombuffer(loader.content(pinned, settings), np.uint8)
            self._held.pop(pinned.sha256, None)
            self._held[pinned.sha256] = ray.put(content)  # an array is mapped by its readers, bytes would be copied
        self._pinned[uri] = self._pinned[pinned.uri] = pinned
        for old in list(self._held)[:-KEPT]:
            del self._held[old]
        return pinned, [self._held[pinned.sha256]]

    def accept(self, uri: str) -> None:
        """Remembers the weights that a replica took into service last."""
        self._accepted = uri

    def accepted(self) -> str | None:
        """What a new replica serves when the weights it was told to serve are refused."""
        return self._accepted


def actor() -> Any:  # noqa: ANN401 - Ray types no actor with options
    """The holder, started if it is not there. It books no CPU: it works only while weights change."""
    return (
        ray.remote(Holder)
        .options(name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0)
        .remote()
    )


def fetch(uri: str, settings: AppSettings) -> loader.Content:
    """The pinned bytes: a local file's own, S3's by way of the holder, mapped and not copied. Raises WeightsError.

    The holder's death, or the loss of the object with it, costs another try.
    """
    if not uri.startswith(SCHEME):
        return loader.fetch(uri, settings)
    lost = False
    for _ in range(TRIES):
        try:
            pinned, (reference,) = ray.get(actor().fetch.remote(uri, settings, lost))
            return pinned, memoryview(ray.get(reference))
        except RayTaskError as error:
            raise error.cause from error  # what the holder raised
        except (RayActorError, ObjectLostError) as error:
            lost = True
            logger.warning("the weights holder or its object is gone, asking again: %s", error)
            time.sleep(PAUSE_S)
    raise UnreachableStore(f"{uri}: the weights holder died {TRIES} times")


def accept(uri: str) -> None:
    """Tells the holder what serves now; local files need no holder."""
    if uri.startswith(SCHEME):
        actor().accept.remote(uri)


def accepted() -> str | None:
    """The last weights from S3 that any replica took into service; None when the holder knows none."""
    try:
        uri: str | None = ray.get(actor().accepted.remote())
    except RayActorError:
        return None
    return uri
