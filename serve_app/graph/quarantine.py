"""Quarantine: a photo that a process dies of, and then another one, is refused, so that no third one dies of it.

Each process writes which photos it has in hand into a file of its own, which outlives a SIGKILL. Processes of one node
share the folder. The lock on the file ends with its process: whoever notices gives each photo in the file a strike.

A strike makes a suspect, which runs only while no other suspect of the node does, though beside other photos. A second
strike makes it guilty if it ran so. Photos that were only there when several processes died stay suspects.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from serve_app.errors import AppError, ImageQuarantined

logger = logging.getLogger("ray.serve")
STRIKES, SUFFIX = 2, ".alone"  # deaths with the photo in hand, and what marks those in which it was the only suspect
FORGOTTEN_S = 3600.0  # after the last strike; the decoder may be a newer one by then
DIGEST_BYTES = 16
PLACE_BYTES = 1 + DIGEST_BYTES  # of the file: how a photo runs, and its digest
NOTHING, BESIDE_OTHERS, ALONE = b"\0", b"1", b"2"
LARGE_BYTES = 1_000_000  # hashing takes 1 ms for each 2 MB: a larger photo is hashed in a thread


def folder() -> Path:
    """Where the processes of this user on this node share what they have in hand."""
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError:  # none can be written
        temporary = "/tmp"  # noqa: S108
    return Path(temporary) / f"recognition-{os.getuid()}"


class Held(NamedTuple):
    """A photo that a process has in hand: the digest of its bytes, and whether it runs as the only suspect."""

    photo: str
    alone: bool


class Quarantine:
    """What one process has in hand, and what others had when they died. For one event loop only.

    A full or read-only disk is logged, and never fails a photo: it is then not protected.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._strikes = folder, folder / "strikes"
        self._alone = asyncio.Lock()
        self._free: list[int] = []  # places in the file that hold no photo
        self._places = 0
        with self._logged():
            self._strikes.mkdir(parents=True, exist_ok=True)
        self._file = self._own_file()

    def _own_file(self) -> int | None:
        """Opens this process's file, and locks it before others see it."""
        own = self._folder / f"{os.getpid()}-{os.urandom(4).hex()}"
        with self._logged():
            file = os.open(own, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX)
            own.rename(own.with_suffix(".held"))
            return file
        return None

    @asynccontextmanager
    async def holding(self, image: bytes) -> AsyncIterator[Held]:
        """Has a photo in hand until the block ends.

        A suspect waits until no other one is in hand. It is forgiven once it is answered. Raises ImageQuarantined for a
        guilty one.
        """
        photo = await asyncio.to_thread(name_of, image) if len(image) > LARGE_BYTES else name_of(image)
        self.collect()
        if not self.strikes(photo):
            with self._held(photo, BESIDE_OTHERS):
                yield Held(photo, alone=False)
            return
        async with self._one_suspect():
            strikes = self.strikes(photo)
            deaths = {strike.removesuffix(SUFFIX) for strike in strikes}
            if len(deaths) >= STRIKES and any(strike.endswith(SUFFIX) for strike in strikes):
                raise ImageQuarantined(
                    f"{len(deaths)} processes died while they had this image: it is refused until "
                    f"{FORGOTTEN_S / 60:g} minutes after the last time; send another image, or the same picture in "
                    "another format"
                )
            with self._held(photo, ALONE):
                try:
                    yield Held(photo, alone=True)
                except AppError as error:
                    if error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                        self.forgive(photo)
                    raise
            self.forgive(photo)

    @asynccontextmanager
    async def _one_suspect(self) -> AsyncIterator[None]:
        """Waits for all other suspects of this node."""
        async with self._alone:
            file = None
            with self._logged():
                file = os.open(self._folder / "alone", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                while file is not None:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0.02)
                yield
            finally:
                if file is not None:
                    os.close(file)

    def strike(self, held: Held, process: str) -> None:
        """Notes that this process died with the photo in hand. The same process counts once."""
        how = "as the only suspect" if held.alone else "beside others"
        logger.error("process %s died with photo %s in hand, %s", process, held.photo, how)
        with self._logged():
            (self._strikes / held.photo).mkdir(exist_ok=True)
            (self._strikes / held.photo / (process + SUFFIX * held.alone)).touch()

    def strikes(self, photo: str) -> list[str]:
        """The processes that died with the photo in hand, until FORGOTTEN_S (an hour) after the last.

        Those in which it was the only suspect end with SUFFIX.
        """
        try:
            if time.time() - (self._strikes / photo).stat().st_mtime < FORGOTTEN_S:
                return [strike.name for strike in (self._strikes / photo).iterdir()]
        except OSError:
            return []
        self.forgive(photo)
        return []

    def forgive(self, photo: str) -> None:
        """Forgets the strikes of a photo."""
        shutil.rmtree(self._strikes / photo, ignore_errors=True)

    def collect(self) -> None:
        """Gives a strike to each photo that a process of this node had in hand when it ended."""
        for path in self._folder.glob("*.held"):
            with suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its process lives
                if os.fstat(file.fileno()).st_nlink:  # else another process has collected it
                    content = file.read()
                    places = {content[i : i + PLACE_BYTES] for i in range(0, len(content), PLACE_BYTES)}
                    for place in places:
                        if place[:1] != NOTHING:
                            self.strike(Held(place[1:].hex(), alone=place[:1] == ALONE), path.stem)
                    path.unlink()

    @contextmanager
    def _held(self, photo: str, how: bytes) -> Iterator[None]:
        if self._free:
            place = self._free.pop()
        else:
            place, self._places = self._places, self._places + 1
        self._write(place, how + bytes.fromhex(photo))
        try:
            yield
        finally:
            self._write(place, NOTHING * PLACE_BYTES)
            self._free.append(place)

    def _write(self, place: int, content: bytes) -> None:
        if self._file is not None:
            with self._logged():
                os.pwrite(self._file, content, place * PLACE_BYTES)

    @contextmanager
    def _logged(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.warning("photos are not protected against killing several processes: %s", error)


def name_of(image: bytes) -> str:
    """The digest of a photo's bytes, 32 hexadecimal digits."""
    return hashlib.sha256(image).hexdigest()[: 2 * DIGEST_BYTES]
