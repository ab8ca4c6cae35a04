"""Any sequence of swaps, refusals, deaths and returns: what serves is always weights that were tested, and the right ones.

In words:
* A swap to good weights serves them, and a swap to bad ones changes nothing but the list of refusals.
* What serves never changes by itself: only by a swap, or by a death.
* After a death, the configured weights serve if they are good, else what the application had live last, else the default.
* The weights of before are still loaded: going back to them loads nothing.
* A replica starts, unless all that it may try is bad.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import GoldenFailed, WeightsError
from serve_app.graph import live_weights
from serve_app.graph.live_weights import REFUSALS, LiveWeights

DEFAULT, NAMES = "default", ("default", "a", "b", "c")
names = st.sampled_from(NAMES)
steps = st.one_of(
    st.tuples(st.just("swap"), names),
    st.tuples(st.just("to default"), st.just("")),
    st.tuples(st.just("breaks"), names),  # at its next load
    st.tuples(st.just("is mended"), names),
    st.tuples(st.just("die"), st.just("")),
    st.tuples(st.just("grow"), st.just("")),  # a batch size that the network cannot run
)


class Cluster:
    """The holder, the store, and one replica after the other."""

    def __init__(self) -> None:
        self.bad: set[str] = set()
        self.last_live: str | None = None
        self.loads: list[str] = []
        self.configured: str | None = None
        self.replica: LiveWeights | None = None
        self.refusals: list[str] = []

    def load(self, uri: str, *_: object, **__: object) -> Any:
        self.loads.append(uri)
        if uri in self.bad:
            raise ZeroDivisionError if uri == "c" and self.replica and self.replica.started else GoldenFailed(uri)
        weights = SimpleNamespace(name=uri, version=None, sha256=uri, precision="float32")
        return SimpleNamespace(
            pinned=SimpleNamespace(uri=uri), weights=weights, seconds={}, int8_refused=None, warm=self.warm
        )

    def warm(self, sizes: set[int], _: int) -> None:
        if 99 in sizes:
            raise RuntimeError("out of memory")

    def record(self, uri: str) -> None:
        self.last_live = uri

    def known(self) -> str | None:
        return self.last_live

    def start(self) -> None:
        """A new replica, as Serve makes it: with the configured weights."""
        self.replica, self.refusals = LiveWeights(mock.Mock(), DEFAULT, 32, "detect", "cpu"), []
        tried = [self.configured or DEFAULT]
        if tried[0] != DEFAULT:
            tried += [uri for uri in (self.last_live,) if uri and uri != tried[0]] + [DEFAULT]
        good = [uri for uri in tried if uri not in self.bad]
        before = len(self.loads)
        try:
            self.replica.switch_to(self.configured, {1})
        except WeightsError:
            assert not good, "a replica that could serve something did not start"
            self.refusals, self.replica = [], None
            return
        assert self.serves == good[0]
        self.refusals = self.loads[before:-1]

    @property
    def serves(self) -> str:
        assert self.replica
        assert self.replica.current.weights.name == self.replica.report().weights.name
        return self.replica.current.weights.name

    def swap(self, uri: str | None) -> None:
        self.configured = uri
        if self.replica is None:  # Serve tries again with the new configuration
            self.start()
            return
        before, previous, loads = self.serves, self.replica.report().previous, len(self.loads)
        wanted = uri or DEFAULT
        self.replica.switch_to(uri, {1})
        loaded = self.loads[loads:]
        if wanted == before:
            assert (self.serves, loaded) == (before, [])
        elif previous and wanted == previous.name:
            assert (self.serves, loaded) == (wanted, []), "the weights of before are still loaded"
        elif wanted in self.bad:
            assert (self.serves, loaded) == (before, [wanted])
            assert self.replica.report().previous is previous
            self.refusals.append(wanted)
        else:
            assert (self.serves, loaded) == (wanted, [wanted])
            assert self.replica.report().previous.name == before  # type: ignore[union-attr]

    def grow(self) -> None:
        """A batch size that does not fit: RuntimeError, and nothing has changed."""
        if self.replica:
            before, raised = self.serves, False
            try:
                self.replica.switch_to(self.configured, {1, 99})
            except RuntimeError:
                raised = True
            assert (raised, self.serves) == (True, before)


def patched(cluster: Cluster) -> Iterator[Any]:
    yield mock.patch.object(live_weights.loader, "load", cluster.load)
    yield mock.patch.object(live_weights.weights_holder, "record_live", cluster.record)
    yield mock.patch.object(live_weights.weights_holder, "last_live", cluster.known)
    for name in ("swaps_total", "weights_live", "load_seconds_total"):
        yield mock.patch.object(live_weights.metrics, name, mock.Mock)


@given(st.lists(steps, max_size=25))
@settings(max_examples=1000, deadline=None)
def test_any_sequence(sequence: list[tuple[str, str]]) -> None:
    cluster = Cluster()
    patches = list(patched(cluster))
    for patch in patches:
        patch.start()
    try:
        cluster.start()
        for what, name in sequence:
            serving = cluster.serves if cluster.replica else None
            if what == "swap":
                cluster.swap(name)
            elif what == "to default":
                cluster.swap(None)
            elif what == "die":
                cluster.start()
            elif what == "grow":
                cluster.grow()
            else:
                (cluster.bad.add if what == "breaks" else cluster.bad.discard)(name)
                assert serving == (cluster.serves if cluster.replica else None)
            if cluster.replica:
                report = cluster.replica.report()
                assert report.loading is None
                assert [one.uri for one in report.refused] == cluster.refusals[-REFUSALS:]
                assert cluster.last_live == cluster.serves, "a new replica would know what is live"
    finally:
        for patch in patches:
            patch.stop()
