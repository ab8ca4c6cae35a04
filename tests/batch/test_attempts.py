"""A photo that kills its decoder, again and again, is a row in the end and does not hold up the others."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.batch import attempts, part, stages
from serve_app.batch.attempts import Attempts
from serve_app.batch.part import Part, packed
from serve_app.batch.s3 import StoreFailed
from serve_app.errors import CommandFailed
from serve_app.graph.payloads import Prepared
from serve_app.vision import sample_photos
from tests.batch.test_stages import job


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    return tmp_path / "temp"


def died(work: Callable[[], object]) -> bool:
    """Whether a process of its own died at the work, as Ray sees it."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def dies_at(*places: int, number: int = 1) -> bool:
    """A try of a part that dies with the last of these photos in hand."""

    def work() -> None:
        with Attempts("s3://b/out", "decode", number).noted() as (deadly, attempt):
            for place in places:
                attempt.begins(place)
            os._exit(0 if set(places) & deadly else 9)

    return died(work)


def test_a_photo_that_kills_its_decoder_becomes_an_error(
    tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{tmp_path}/{n}.jpg" for n in range(6)]
    for n, name in enumerate(names):
        Path(name).write_bytes(b"deadly" if n in (2, 4) else sample_photos.bus())
    work, prepare = job(tmp_path, "detect"), stages.Preprocessor.prepare

    def prepared(one: stages.Preprocessor, data: bytes, *rest: object) -> Prepared:
        return os._exit(9) if data == b"deadly" else prepare(one, data, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stages.Preprocessor, "prepare", prepared)
    for _ in range(2 * attempts.MOST):
        assert died(lambda: stages.decode(packed(Part(0, names)), work))
    photos = part.unpacked(stages.decode(packed(Part(0, names)), work)).photos
    assert [isinstance(one, Prepared) for one in photos] == [True, True, False, True, False, True]
    assert {photos[n].code for n in (2, 4)} == {"corrupt_image"}
    assert "died" in str(photos[2])
    assert not [path for path in notes.rglob("*") if path.is_file()]


def test_deaths_with_different_photos_in_hand_are_chance() -> None:
    assert all(dies_at(*range(last + 1)) for last in (0, 1, 2, 0, 1, 2))
    with Attempts("s3://b/out", "decode", 1).noted() as (deadly, _):
        assert not deadly


def test_the_deaths_of_one_part_are_not_anothers() -> None:
    assert all(dies_at(7, number=4) for _ in range(attempts.MOST))
    for dest, stage, number in (
        ("s3://b/out", "decode", 5),
        ("s3://b/other", "decode", 4),
        ("s3://b/out", "finish", 4),
    ):
        with Attempts(dest, stage, number).noted() as (deadly, _):
            assert not deadly
    with Attempts("s3://b/out", "decode", 4).noted() as (deadly, _):
        assert deadly == {7}


def test_deaths_after_the_last_photo_are_nobodys() -> None:
    def dies_when_done() -> None:
        with Attempts("s3://b/out", "decode", 1).noted() as (_, attempt):
            attempt.begins(0)
            attempt.ends()
            os._exit(9)

    assert all(died(dies_when_done) for _ in range(attempts.MOST))
    with pytest.raises(CommandFailed, match="try a smaller --part"), Attempts("s3://b/out", "decode", 1).noted():
        pass


def test_many_deadly_photos_are_too_little_memory() -> None:
    assert all(dies_at(place) for place in range(attempts.MANY) for _ in range(attempts.MOST))
    with pytest.raises(CommandFailed, match="more memory"), Attempts("s3://b/out", "decode", 1).noted():
        pass


def test_a_store_that_fails_is_no_death() -> None:
    def fails() -> None:
        with Attempts("s3://b/out", "decode", 1).noted() as (deadly, attempt):
            assert not deadly
            attempt.begins(0)
            raise StoreFailed("the store does not answer")

    for _ in range(attempts.MOST + 1):
        with pytest.raises(StoreFailed):
            fails()
