"""Which photos SOURCE means, on disk and in S3; what is left out is counted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from loadtests import s3_server
from serve_app.batch import sources
from serve_app.batch.storage import Storage, absolute
from serve_app.errors import CommandFailed


def found(source: object) -> sources.Sources:
    return sources.found(absolute(str(source)), Storage())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "below/c.webp", "d.mpo", "e.heic", "notes.txt", "below/labels.json", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_a_folder_means_the_images_below_it(folder: Path) -> None:
    photos = found(folder)
    assert photos.photos == [f"{folder}/{name}" for name in ("a.PNG", "b.jpg", "below/c.webp", "d.mpo", "e.heic")]
    assert photos.left_out == {f"{kind}: no format that is read here": 1 for kind in (".txt", ".json", "no suffix")}


def test_the_order_does_not_depend_on_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = found(folder).photos
    monkeypatch.setattr(Storage, "names", lambda *_: sorted((p[len(str(folder)) + 1 :] for p in once), reverse=True))
    assert found(folder).photos == once


def test_links_to_folders_are_followed_into_each_once(folder: Path) -> None:
    (folder / "below" / "up").symlink_to(folder)
    elsewhere = folder.parent / f"{folder.name}-elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.jpg").write_bytes(b"")
    (folder / "link").symlink_to(elsewhere)
    assert f"{folder}/link/x.jpg" in found(folder).photos
    assert len(found(folder).photos) == 6


def test_a_relative_folder_has_absolute_addresses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert found(folder.name).photos == found(folder).photos


@pytest.mark.parametrize(("pattern", "names"), [("*", 6), ("**/*.webp", 1), ("[ab].*", 2), ("b.jpg", 1)])
def test_a_glob_means_every_file_that_matches(folder: Path, pattern: str, names: int) -> None:
    assert len(found(folder / pattern).photos) == names


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.txt", "a.PNG\n\n  below/c.webp \r\nb.jpg\n"),
        ("bom.txt", "\ufeffa.PNG\nbelow/c.webp\nb.jpg"),
        ("one.csv", "photo\na.PNG\nbelow/c.webp\nb.jpg\n"),
        ("several.csv", 'id,source,camera\n1,a.PNG,x\n2,"below/c.webp",\n3,b.jpg,y\n'),
    ],
)
def test_a_list_means_its_addresses_in_its_order(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    assert found(folder / name).photos == [f"{folder}/{photo}" for photo in ("a.PNG", "below/c.webp", "b.jpg")]


def test_a_parquet_list_may_name_s3(folder: Path) -> None:
    rows = {"camera": [1, 2, 3], "source": ["s3://b/k.jpg", None, "/data/x.jpg"]}
    parquet.write_table(pa.table(rows), folder / "list.parquet")
    assert found(folder / "list.parquet").photos == ["s3://b/k.jpg", "/data/x.jpg"]


def test_a_parquet_list_of_another_type_is_an_error(folder: Path) -> None:
    parquet.write_table(pa.table({"source": [[1, 2]]}), folder / "list.parquet")
    with pytest.raises(CommandFailed, match=r"cannot be read as \.parquet"):
        found(folder / "list.parquet")


def test_a_folder_that_is_linked_beside_itself_counts_once(folder: Path) -> None:
    (folder / "a-link").symlink_to("below")
    (folder / "z-link").symlink_to("below")
    assert [p for p in found(folder).photos if p.endswith(".webp")] == [f"{folder}/below/c.webp"]
    (folder / "up").symlink_to(".")
    assert list(found(folder / "**" / "*.webp").photos) == [f"{folder}/a-link/c.webp"]


def test_photos_that_a_run_has_drawn_are_no_source(folder: Path) -> None:
    (folder / "out" / "_drawn").mkdir(parents=True)
    (folder / "out" / "_drawn" / "000000000-b.jpg.jpg").write_bytes(b"")
    assert len(found(folder).photos) == 5


def test_a_photo_that_is_named_twice_is_one(folder: Path) -> None:
    (folder / "list.txt").write_text("b.jpg\n./b.jpg\nbelow/../b.jpg\n")
    photos = found(folder / "list.txt")
    assert photos.photos == [f"{folder}/b.jpg"]
    assert photos.left_out == {"named twice": 2}


def test_a_name_that_is_not_utf8_is_left_out_and_counted(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")).write_bytes(b"")
    assert found(folder).left_out["the name is not UTF-8"] == 1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("gs://bucket/photos", None, "only paths and s3://"),
        ("https://example.com/a.jpg", None, "only paths and s3://"),
        ("nowhere", None, "there is no such file or folder"),
        ("x*.jpg", None, "no photos there"),
        ("empty.txt", b"\n", "no photos there"),
        ("two.csv", b"path,camera\na.PNG,1\n", "name the one with the addresses `source`"),
        ("binary.txt", b"\xff\xfe\x00", "cannot be read as .txt"),
        ("bad.parquet", b"PAR1", "cannot be read as .parquet"),
        ("web.txt", b"https://example.com/a.jpg", "not https://"),
        ("short.csv", b"", "has the columns"),
        ("headless.csv", b"a.PNG\nb.jpg\n", "has the columns a.PNG"),
        ("semicolons.csv", b"id;source\n1;a.PNG\n", "has the columns id;source"),
        ("long.csv", b"source\n" + b"x" * 200_000, "cannot be read as .csv"),
        ("bucketless.txt", b"s3:///key.jpg", "names no bucket"),
    ],
)
def test_a_source_that_means_nothing_is_an_error(folder: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(CommandFailed, match=says):
        found(name if "://" in name else folder / name)


@pytest.fixture(scope="module")
def bucket() -> Iterator[s3_server.Bucket]:
    with s3_server.bucket() as bucket:
        for key in ("in/b.jpg", "in/", "in/below/a.png", "in/x.txt", "in-other/c.jpg"):
            bucket.client.put_object(Bucket=s3_server.BUCKET, Key=key, Body=b"x")
        yield bucket


def test_a_prefix_means_the_images_below_it_and_not_beside_it(bucket: s3_server.Bucket) -> None:
    storage = Storage(bucket.endpoint)
    for source in (f"s3://{s3_server.BUCKET}/in", f"s3://{s3_server.BUCKET}/in/"):
        photos = sources.found(absolute(source), storage)
        assert photos.photos == [f"s3://{s3_server.BUCKET}/in/b.jpg", f"s3://{s3_server.BUCKET}/in/below/a.png"]
        assert photos.left_out == {".txt: no format that is read here": 1}


def test_one_object_is_a_source(bucket: s3_server.Bucket) -> None:
    address = f"s3://{s3_server.BUCKET}/in/b.jpg"
    assert sources.found(address, Storage(bucket.endpoint)).photos == [address]


@pytest.mark.parametrize(
    ("source", "says"),
    [("in/*.jpg", "no glob in S3"), ("in/none.jpg", "no photos there"), ("nothing", "no photos there")],
)
def test_what_is_not_in_the_bucket_is_an_error(bucket: s3_server.Bucket, source: str, says: str) -> None:
    with pytest.raises(CommandFailed, match=says):
        sources.found(absolute(f"s3://{s3_server.BUCKET}/{source}"), Storage(bucket.endpoint))


@pytest.mark.parametrize("address", ["s3://", "s3:///", "s3:///key", ""])
def test_an_address_of_nothing_is_an_error(address: str) -> None:
    with pytest.raises(CommandFailed):
        absolute(address)


def test_relative_addresses_of_a_list_in_s3(bucket: s3_server.Bucket) -> None:
    bucket.client.put_object(Bucket=s3_server.BUCKET, Key="lists/all.txt", Body=b"./a.jpg\r\n../in/b.jpg\n")
    photos = sources.found(f"s3://{s3_server.BUCKET}/lists/all.txt", Storage(bucket.endpoint)).photos
    assert photos == [f"s3://{s3_server.BUCKET}/lists/a.jpg", f"s3://{s3_server.BUCKET}/in/b.jpg"]


def test_a_bucket_that_does_not_exist_is_an_error(bucket: s3_server.Bucket) -> None:
    with pytest.raises(CommandFailed, match="NoSuchBucket"):
        sources.found("s3://nothing-here/in", Storage(bucket.endpoint))
