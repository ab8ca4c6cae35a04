"""One download and one object for all replicas of a node, in a real Ray; and what the holder's death costs."""

from __future__ import annotations

import http.server
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
import ray
from ray._private.internal_api import memory_summary
from ray.exceptions import ObjectLostError, RayTaskError

from loadtests import s3_server
from loadtests.service import command
from serve_app.errors import MissingWeights
from serve_app.graph import weights_holder
from serve_app.settings import AppSettings
from serve_app.weights.identity import BUNDLED, Pinned, pin_file, sha256_of
from serve_app.weights.store import Store
from tests.conftest import eventually, http_server

KEY = f"s3://{s3_server.BUCKET}/road5.pt"
READERS = 4


@ray.remote(num_cpus=0)
class Reader:
    """What a Detector replica does with the holder; keeps what it got, as a replica may."""

    def read(self, uri: str, settings: AppSettings) -> tuple[str, int]:
        pinned, self.content = weights_holder.fetch(uri, settings)
        return pinned.uri, len(self.content)


class Silent(http.server.BaseHTTPRequestHandler):
    """A store that answers nothing until `done`."""

    done: ClassVar[threading.Event] = threading.Event()

    def do_HEAD(self) -> None:
        self.done.wait()
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def bucket() -> Iterator[s3_server.Bucket]:
    with s3_server.bucket() as bucket:
        temp = tempfile.mkdtemp(prefix="ray-")
        ray.init(
            address="local",
            namespace="serve",
            _temp_dir=temp,
            _node_ip_address="127.0.0.1",
            log_to_driver=False,
            object_store_memory=80_000_000,
        )
        yield bucket
        ray.shutdown()
        shutil.rmtree(temp, ignore_errors=True)


@pytest.fixture(scope="module")
def settings(bucket: s3_server.Bucket, tmp_path_factory: pytest.TempPathFactory) -> AppSettings:
    return AppSettings(s3_endpoint_url=bucket.endpoint, weights_cache=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def published(bucket: s3_server.Bucket) -> Pinned:
    manifest = pin_file(str(BUNDLED)).manifest
    assert manifest
    return Store(bucket.endpoint).publish(BUNDLED, manifest, KEY)


def objects() -> tuple[float, int]:
    """MiB and objects in the store, by its own figures."""
    found = re.search(
        r"Plasma memory usage (\S+) MiB, (\d+) objects",
        memory_summary(ray.get_runtime_context().gcs_address, stats_only=True),
    )
    assert found
    return float(found[1]), int(found[2])


def publish(bucket: s3_server.Bucket, like: Pinned, content: bytes, folder: Path) -> Pinned:
    path = folder / "other.pt"
    path.write_bytes(content)
    assert like.manifest
    update = {"sha256": sha256_of(path), "bytes": len(content)}
    return Store(bucket.endpoint).publish(path, like.manifest.model_copy(update=update), KEY)


def downloads(bucket: s3_server.Bucket) -> int:
    return len(bucket.requests("GET", "road5.pt?"))


@pytest.fixture(scope="module")
def readers(published: Pinned, settings: AppSettings) -> list[Any]:
    readers = [Reader.remote() for _ in range(READERS)]
    found = ray.get([r.read.remote(KEY, settings) for r in readers])
    assert found == [(published.uri, BUNDLED.stat().st_size)] * READERS
    return readers


@pytest.mark.usefixtures("readers")
def test_many_replicas_cost_one_download_and_one_object(bucket: s3_server.Bucket) -> None:
    assert downloads(bucket) == 1
    mebibytes, count = objects()
    assert count == 1
    assert mebibytes == pytest.approx(BUNDLED.stat().st_size / 2**20, abs=1)


def test_the_holders_death_costs_no_download(
    readers: list[Any], bucket: s3_server.Bucket, published: Pinned, settings: AppSettings
) -> None:
    before = downloads(bucket)
    ray.kill(ray.get_actor(weights_holder.NAME, namespace=weights_holder.NAMESPACE))
    assert ray.get(readers[0].read.remote(published.uri, settings)) == (published.uri, BUNDLED.stat().st_size)
    assert downloads(bucket) == before, "the disk cache had it"


def test_a_lost_cache_costs_one_download(
    readers: list[Any], bucket: s3_server.Bucket, published: Pinned, settings: AppSettings
) -> None:
    before = downloads(bucket)
    ray.kill(ray.get_actor(weights_holder.NAME, namespace=weights_holder.NAMESPACE))
    shutil.rmtree(settings.weights_cache)
    found = ray.get([r.read.remote(published.uri, settings) for r in readers])
    assert found == [(published.uri, BUNDLED.stat().st_size)] * READERS
    assert downloads(bucket) == before + 1


@pytest.mark.usefixtures("readers")
def test_a_frozen_holder_is_replaced(published: Pinned, settings: AppSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_holder, "ALIVE_S", 1.0)
    monkeypatch.setattr(weights_holder, "SILENT_S", 15.0)  # on busy cores Ray started the next holder in 7 s
    (frozen,) = [p for p in psutil.Process().children(recursive=True) if "ray::WeightsHolder" in command(p)]
    frozen.suspend()
    pinned, content = weights_holder.fetch(published.uri, settings)
    assert (pinned.uri, len(content)) == (published.uri, BUNDLED.stat().st_size)
    eventually(lambda: not frozen.is_running())


def test_a_slow_download_holds_up_nobody_else(
    readers: list[Any], published: Pinned, settings: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a replica that starts again while others swap to weights that do not come."""
    monkeypatch.setattr(weights_holder, "ALIVE_S", 0.2)
    with http_server(Silent) as nowhere:
        slow = settings.model_copy(update={"s3_endpoint_url": nowhere})
        waiting = readers[0].read.remote(f"s3://{s3_server.BUCKET}/slow.pt", slow)
        assert ray.wait([waiting], timeout=3)[0] == []
        assert weights_holder.fetch(published.uri, settings)[0].uri == published.uri
        assert ray.wait([waiting], timeout=0)[0] == [], "the holder lives, so it is waited for"
        Silent.done.set()
        with pytest.raises(RayTaskError):
            ray.get(waiting)


def test_a_lost_object_is_put_again(
    bucket: s3_server.Bucket, published: Pinned, settings: AppSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The holder dies after it has answered and before its object was read: what has no owner is evicted first."""
    unread = publish(bucket, published, b"x" * 1_000_000, tmp_path)
    kept = weights_holder.actor()
    stale = ray.get(kept.fetch.remote(unread.uri, settings, False))
    ray.kill(kept)
    hogs = [ray.put(np.zeros(20_000_000, np.uint8)) for _ in range(4)]
    with pytest.raises(ObjectLostError):
        ray.get(stale[1][0])
    del hogs

    class Late:
        """Answers what the dead holder had answered."""

        class fetch:  # noqa: N801 - an actor's method
            @staticmethod
            def remote(*_: object) -> ray.ObjectRef:
                monkeypatch.undo()
                return ray.put(stale)

    monkeypatch.setattr(weights_holder, "actor", lambda: Late)
    assert bytes(weights_holder.fetch(unread.uri, settings)[1]) == b"x" * 1_000_000
    assert weights_holder.actor() is not Late


def test_latest_is_resolved_once(
    readers: list[Any], bucket: s3_server.Bucket, published: Pinned, settings: AppSettings, tmp_path: Path
) -> None:
    """Else two replicas that start at different times would serve different weights."""
    first = ray.get(readers[0].read.remote(KEY, settings))
    newer = publish(bucket, published, b"newer", tmp_path)
    assert newer.uri != first[0]
    assert ray.get(readers[1].read.remote(KEY, settings)) == first
    assert ray.get(readers[0].read.remote(newer.uri, settings)) == (newer.uri, 5)


@pytest.mark.usefixtures("readers")
def test_what_the_store_refuses_arrives_as_it_is(settings: AppSettings) -> None:
    with pytest.raises(MissingWeights, match="no such bucket, object or version"):
        weights_holder.fetch(f"s3://{s3_server.BUCKET}/none.pt", settings)


@pytest.mark.usefixtures("readers")
def test_the_last_accepted_of_an_application_is_remembered(published: Pinned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_holder, "application", lambda: "recognition")
    weights_holder.record_live(published.uri)
    assert weights_holder.last_live() == published.uri
    monkeypatch.setattr(weights_holder, "application", lambda: "another")
    assert weights_holder.last_live() is None
