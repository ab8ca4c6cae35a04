"""A photo that processes die of: who is blamed, who is refused, and who is not."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve_app.errors import CorruptImage, ImageQuarantined, NotReady
from serve_app.graph import quarantine
from serve_app.graph.quarantine import Held, Quarantine, name_of
from tests.conftest import ROOT

PHOTO, OTHER = b"deadly", b"beside it"
DIES = """
import asyncio, sys
from pathlib import Path
from serve_app.graph.quarantine import Quarantine
async def hold(held, image):
    async with held.holding(image):
        await asyncio.sleep(3600)
async def main():
    held = Quarantine(Path(sys.argv[1]))
    photos = [asyncio.create_task(hold(held, image.encode())) for image in sys.argv[2:]]
    await asyncio.sleep(0.1)
    print("holding", flush=True)
    await asyncio.gather(*photos)
asyncio.run(main())
"""


def alone(name: str) -> Held:
    return Held(name_of(name.encode()), alone=True)


def beside(name: str) -> Held:
    return Held(name_of(name.encode()), alone=False)


@contextmanager
def process(folder: Path, *photos: bytes) -> Iterator[None]:
    """A process that has these photos in hand; it is killed when the block ends."""
    line = [sys.executable, "-c", DIES, str(folder), *(photo.decode() for photo in photos)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"holding\n"
        yield
        process.send_signal(signal.SIGKILL)


def die(folder: Path, *photos: bytes) -> None:
    with process(folder, *photos):
        pass


async def hold(held: Quarantine, photo: bytes, error: Exception | None = None) -> None:
    async with held.holding(photo):
        await asyncio.sleep(0)
        if error:
            raise error


def test_the_third_process_refuses_what_two_died_of(tmp_path: Path) -> None:
    for _ in range(2):
        die(tmp_path, PHOTO)
    held = Quarantine(tmp_path)
    with pytest.raises(ImageQuarantined, match="2 processes died"):
        asyncio.run(hold(held, PHOTO))
    asyncio.run(hold(held, OTHER))


def test_one_death_is_no_proof_and_an_answer_forgives_it(tmp_path: Path) -> None:
    held = Quarantine(tmp_path)
    for _ in range(3):
        die(tmp_path, PHOTO, PHOTO, OTHER)  # twice in hand counts once
        held.collect()
        assert len(held.strikes(name_of(PHOTO))) == len(held.strikes(name_of(OTHER))) == 1
        asyncio.run(hold(held, PHOTO))
        with pytest.raises(CorruptImage):
            asyncio.run(hold(held, OTHER, CorruptImage("survived, all the same")))
        assert held.strikes(name_of(PHOTO)) == held.strikes(name_of(OTHER)) == []


def test_who_was_only_there_is_not_guilty_however_often(tmp_path: Path) -> None:
    """Two replicas have one popular photo in hand. The deadly one kills the first, and then, alone, the second."""
    with process(tmp_path, OTHER):
        die(tmp_path, PHOTO, OTHER)
    die(tmp_path, PHOTO)
    held = Quarantine(tmp_path)
    with pytest.raises(ImageQuarantined):
        asyncio.run(hold(held, PHOTO))
    assert len(held.strikes(name_of(OTHER))) == 2
    asyncio.run(hold(held, OTHER))
    assert held.strikes(name_of(OTHER)) == []


def test_what_is_not_known_to_be_survived_is_not_forgiven(tmp_path: Path) -> None:
    held = Quarantine(tmp_path)
    held.strike(beside("deadly"), "replica-1")
    with pytest.raises(NotReady):
        asyncio.run(hold(held, PHOTO, NotReady("its stage died")))
    held.strike(beside("deadly"), "replica-1")
    assert held.strikes(name_of(PHOTO)) == ["replica-1"], "a process dies once"
    held.strike(alone("deadly"), "replica-1")
    asyncio.run(hold(held, OTHER))
    held.strike(alone("deadly"), "replica-2")
    with pytest.raises(ImageQuarantined):
        asyncio.run(hold(held, PHOTO))


def test_an_answered_photo_is_not_in_hand(tmp_path: Path) -> None:
    async def scenario() -> None:
        held = Quarantine(tmp_path)
        await asyncio.gather(*(hold(held, bytes([n])) for n in range(50)))
        os.close(held._file)  # type: ignore[arg-type] # as if its process had ended

    asyncio.run(scenario())
    after = Quarantine(tmp_path)
    after.collect()
    assert [after.strikes(name_of(bytes([n]))) for n in range(50)] == [[]] * 50


def test_suspects_run_one_at_a_time_and_others_beside_them(tmp_path: Path) -> None:
    running: list[bytes] = []
    most = 0

    async def run(held: Quarantine, photo: bytes) -> None:
        nonlocal most
        async with held.holding(photo):
            running.append(photo)
            most = max(most, sum(one in suspects for one in running))
            seen_beside.update(running)
            await asyncio.sleep(0.01)
            running.remove(photo)

    async def scenario() -> None:
        one, another = Quarantine(tmp_path), Quarantine(tmp_path)  # as in two processes of a node
        for photo in suspects:
            one.strike(beside(photo.decode()), "replica-1")
        await asyncio.gather(*(run(held, photo) for photo in [*suspects, OTHER] for held in (one, another)))

    suspects, seen_beside = {b"a", b"b", b"c"}, set[bytes]()
    asyncio.run(scenario())
    assert most == 1
    assert OTHER in seen_beside


def test_strikes_are_forgotten_an_hour_after_the_last(tmp_path: Path) -> None:
    held = Quarantine(tmp_path)
    for name in ("replica-1", "replica-2"):
        held.strike(alone("deadly"), name)
    old = time.time() - quarantine.FORGOTTEN_S - 1
    os.utime(tmp_path / "strikes" / name_of(PHOTO), (old, old))
    asyncio.run(hold(held, PHOTO))
    assert held.strikes(name_of(PHOTO)) == []


def test_living_processes_give_no_strikes(tmp_path: Path) -> None:
    async def scenario() -> None:
        first, second = Quarantine(tmp_path), Quarantine(tmp_path)
        async with first.holding(PHOTO):
            await hold(second, PHOTO)
            assert second.strikes(name_of(PHOTO)) == []

    asyncio.run(scenario())


def test_a_disk_that_takes_nothing_fails_no_photo(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        held = Quarantine(tmp_path / "file")  # nothing can be created below a file
    assert "photos are not protected" in caplog.text
    asyncio.run(hold(held, PHOTO))
    held.strike(beside("deadly"), "replica-1")
    assert held.strikes(name_of(PHOTO)) == []


def test_large_photos_are_named_like_small_ones(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Quarantine(tmp_path).holding(large) as photo:
            assert photo == Held(name_of(large), alone=False)

    large = bytes(quarantine.LARGE_BYTES + 1)
    asyncio.run(scenario())
