"""Weights in S3, against a real S3 API: pinned, downloaded in ranges, resumed, and every refusal in clear words."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests import faulty_store, s3_server
from loadtests.faulty_store import FaultyStore
from serve_app.__main__ import main
from serve_app.errors import DamagedWeights, DeniedWeights, MissingWeights, UnreachableStore, UnwritableCache
from serve_app.settings import AppSettings
from serve_app.vision import sample_photos
from serve_app.vision.engines import openvino
from serve_app.weights import golden_set, loader, store
from serve_app.weights.address import Address
from serve_app.weights.identity import BUNDLED, Manifest, Pinned, pin_file, sha256_of
from serve_app.weights.store import Store

KEY = f"s3://{s3_server.BUCKET}/road5.pt"


@pytest.fixture(scope="module")
def bucket() -> Iterator[s3_server.Bucket]:
    with s3_server.bucket() as bucket:
        yield bucket


@pytest.fixture(scope="module")
def published(bucket: s3_server.Bucket) -> Pinned:
    manifest = pin_file(str(BUNDLED)).manifest
    assert manifest
    return Store(bucket.endpoint).publish(BUNDLED, manifest, KEY)


def test_an_address_without_a_version_becomes_one_with(bucket: s3_server.Bucket, published: Pinned) -> None:
    pinned = Store(bucket.endpoint).pin(KEY)
    assert pinned == published
    assert pinned.version
    assert f"versionId={pinned.version}&sha256={sha256_of(BUNDLED)}" in pinned.uri
    assert pinned.image_size == 416


def test_a_version_stays_what_it_was(bucket: s3_server.Bucket, published: Pinned, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(b"other bytes")
    update = {"sha256": sha256_of(other), "bytes": 11}
    assert published.manifest
    newer = Store(bucket.endpoint).publish(other, published.manifest.model_copy(update=update), KEY)
    assert newer.version != published.version
    path = Store(bucket.endpoint).fetch(published, tmp_path / "cache")
    assert sha256_of(path) == sha256_of(BUNDLED)
    bucket.client.delete_object(Bucket=s3_server.BUCKET, Key="road5.pt", VersionId=newer.version)


@pytest.mark.parametrize("have", [1, 3_000_000], ids=["one byte", "half"])
def test_a_download_goes_on_where_it_stopped(
    bucket: s3_server.Bucket, published: Pinned, tmp_path: Path, have: int
) -> None:
    (tmp_path / f"{published.sha256}.pt.part").write_bytes(BUNDLED.read_bytes()[:have])
    seen = len(bucket.requests("GET", "road5.pt?"))
    path = Store(bucket.endpoint).fetch(published, tmp_path)
    assert path.read_bytes() == BUNDLED.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == [f"{published.sha256}.pt"]
    assert len(bucket.requests("GET", "road5.pt?")) == seen + 1
    Store(bucket.endpoint).fetch(published, tmp_path)
    assert len(bucket.requests("GET", "road5.pt?")) == seen + 1, "the second time it is in the cache"


def test_a_damaged_cache_is_downloaded_again(bucket: s3_server.Bucket, published: Pinned, tmp_path: Path) -> None:
    (tmp_path / f"{published.sha256}.pt").write_bytes(b"rot")
    assert sha256_of(Store(bucket.endpoint).fetch(published, tmp_path)) == published.sha256


def test_a_partial_file_of_other_bytes_is_thrown_away(
    bucket: s3_server.Bucket, published: Pinned, tmp_path: Path
) -> None:
    (tmp_path / f"{published.sha256}.pt.part").write_bytes(b"x" * 1000)
    with pytest.raises(DamagedWeights, match="was deleted"):
        Store(bucket.endpoint).fetch(published, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_keeps_the_newest_files_only(bucket: s3_server.Bucket, published: Pinned, tmp_path: Path) -> None:
    for n in range(8):
        (tmp_path / f"{n}.pt").write_bytes(b"old")
    Store(bucket.endpoint).fetch(published, tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert len(names) == store.KEPT_FILES
    assert f"{published.sha256}.pt" in names


@pytest.fixture
def flaky(bucket: s3_server.Bucket) -> Iterator[FaultyStore]:
    with faulty_store.before(bucket.endpoint) as store:
        yield store


def test_a_connection_that_breaks_costs_another_range(flaky: FaultyStore, published: Pinned, tmp_path: Path) -> None:
    flaky.cuts = 3
    assert sha256_of(Store(flaky.url).fetch(published, tmp_path)) == published.sha256
    assert flaky.cuts == 0


def test_a_connection_that_always_breaks_says_so_and_keeps_what_came(
    flaky: FaultyStore, published: Pinned, tmp_path: Path
) -> None:
    flaky.cuts = 100
    with pytest.raises(UnreachableStore, match="failed 5 times"):
        Store(flaky.url).fetch(published, tmp_path)
    assert (tmp_path / f"{published.sha256}.pt.part").stat().st_size > 1_000_000


def test_a_connection_that_stays_slow_is_given_up_for_another(
    flaky: FaultyStore, published: Pinned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "RANGE_S", 2.0)
    flaky.slow = 1
    assert sha256_of(Store(flaky.url).fetch(published, tmp_path)) == published.sha256
    assert flaky.slow == 0


def test_a_full_disk_is_named(bucket: s3_server.Bucket, published: Pinned, tmp_path: Path) -> None:
    """No file may grow beyond 1 MB here, which the system refuses as it refuses a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(UnwritableCache, match=f"cannot be kept in {tmp_path}: File too large"):
            Store(bucket.endpoint).fetch(published, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sha256_of(Store(bucket.endpoint).fetch(published, tmp_path)) == published.sha256, "once there is room"


@pytest.mark.parametrize(("status", "kind"), [(403, DeniedWeights), (404, MissingWeights), (503, UnreachableStore)])
def test_what_the_store_refuses(flaky: FaultyStore, status: int, kind: type[Exception]) -> None:
    flaky.status = status
    with pytest.raises(kind, match=KEY):
        Store(flaky.url).pin(KEY)


def test_a_store_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server.bucket() as bucket:
        pass
    for name, value in s3_server.ENV.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UnreachableStore):
        Store(bucket.endpoint).pin(KEY)


def test_what_is_not_pinned_to_anything(bucket: s3_server.Bucket, published: Pinned, tmp_path: Path) -> None:
    shutil.copy(BUNDLED, tmp_path / "x.pt")
    bucket.client.put_object(Bucket=s3_server.BUCKET, Key="bare.pt", Body=b"no manifest")
    gone = Address.parse(published.uri)
    cases = {
        f"s3://{s3_server.BUCKET}/bare.pt": "weights publish",
        f"s3://{s3_server.BUCKET}/none.pt": "no such bucket, object or version",
        "s3://no-such-bucket/x.pt": "no such bucket, object or version",
        f"{KEY}?versionId=nonsense": "no such bucket, object or version",
        f"{KEY}?version=1": "not of the form",
        f"{KEY}?versionId=": "not of the form",
        f"s3://{s3_server.BUCKET}/x.onnx": "not of the form",
    }
    for uri, message in cases.items():
        with pytest.raises(MissingWeights, match=message):
            Store(bucket.endpoint).pin(uri)
    with pytest.raises(DamagedWeights, match="that version has sha256"):
        Store(bucket.endpoint).pin(gone.pinned(gone.version or "", "0" * 64))


def test_a_bucket_without_versions_pins_nothing() -> None:
    with s3_server.bucket(versioning=False) as bucket:
        manifest = pin_file(str(BUNDLED)).manifest
        assert manifest
        with pytest.raises(MissingWeights, match="versioning is not enabled"):
            Store(bucket.endpoint).publish(BUNDLED, manifest, KEY)
        with pytest.raises(MissingWeights, match="versioning is not enabled"):
            Store(bucket.endpoint).pin(KEY)


def test_a_manifest_that_was_changed_is_refused(bucket: s3_server.Bucket, published: Pinned) -> None:
    meta = bucket.client.head_object(Bucket=s3_server.BUCKET, Key="road5.pt", VersionId=published.version)["Metadata"]
    key = Address.parse(published.uri).manifest_key(meta["manifest"])
    good = bucket.client.get_object(Bucket=s3_server.BUCKET, Key=key)["Body"].read()
    bucket.client.put_object(Bucket=s3_server.BUCKET, Key=key, Body=good.replace(b"person", b"parson"))
    with pytest.raises(DamagedWeights, match="not the manifest that was published"):
        Store(bucket.endpoint).pin(published.uri)
    bucket.client.put_object(Bucket=s3_server.BUCKET, Key=key, Body=good)


def test_publish_verify_list_and_compare(
    bucket: s3_server.Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at, end = f"s3://{s3_server.BUCKET}/by-hand.pt", ("--endpoint-url", bucket.endpoint)
    file, made = str(BUNDLED), tmp_path / "golden.json"
    assert main(["weights", "golden", file, *map(str, sample_photos.files()), "--out", str(made)]) == 0
    in_int8 = openvino.chosen("auto") == "int8"
    said = "bus.jpg: person 83%, person 62%, bus 62%" if in_int8 else "bus.jpg: person 84%, bus"
    assert said in capsys.readouterr().out
    assert main(["weights", "publish", file, at, "--golden", str(made), *end]) == 0
    uri = capsys.readouterr().out.strip()
    assert uri.startswith(f"{at}?versionId=")
    assert main(["weights", "verify", uri, *end]) == 0
    assert "golden photos: 2" in capsys.readouterr().out
    assert main(["weights", "list", at, *end]) == 0
    assert f"{uri}  (latest)" in capsys.readouterr().out
    folder, sheet = tmp_path / "photos", tmp_path / "sheet.jpg"
    folder.mkdir()
    for photo in sample_photos.files():
        shutil.copy(photo, folder)
    (folder / "notes.txt").write_text("no photo")
    assert main(["weights", "compare", file, uri, str(folder), "--sheet", str(sheet), *end]) == 0
    report = capsys.readouterr().out
    assert "only A 0, only B 0" in report
    assert "not read: notes.txt" in report
    assert not sheet.exists(), "they agree"


def test_publish_refuses_what_fails_its_golden_set(
    bucket: s3_server.Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = AppSettings()
    loaded = loader.load(
        str(BUNDLED),
        lambda u: loader.fetch(u, settings),
        settings=settings,
        size=416,
        task="detect",
        device="cpu",
        batch_sizes={1},
    )
    made = golden_set.make(loaded.engine, sample_photos.files(), 416)
    moved = [
        p.model_copy(update={"objects": tuple(o.model_copy(update={"name": "truck"}) for o in p.objects)})
        for p in made.photos
    ]
    wrong = tmp_path / "golden.json"
    wrong.write_text(made.model_copy(update={"photos": tuple(moved)}).model_dump_json())
    at = f"s3://{s3_server.BUCKET}/never.pt"
    assert (
        main(["weights", "publish", str(BUNDLED), at, "--golden", str(wrong), "--endpoint-url", bucket.endpoint]) == 1
    )
    assert "missed objects" in capsys.readouterr().err
    with pytest.raises(MissingWeights):
        Store(bucket.endpoint).versions(at)


def test_the_manifest_of_the_bundled_model_is_one() -> None:
    assert Manifest.model_validate_json(BUNDLED.with_suffix(".json").read_bytes()).golden is None
