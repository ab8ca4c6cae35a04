"""Quarantine: a photo that two processes had in hand when they died is refused, so that no third one dies of it.

Each process writes which photos it has in hand into a file of its own, which outlives a SIGKILL. Processes of one node
share the folder. The lock on the file ends with its process: whoever notices gives each photo in the file a strike.
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

from serve_app.errors import AppError, ImageQuarantined

logger = logging.getLogger("ray.serve")
STRIKES = 2  # deaths with the photo in hand
FORGOTTEN_S = 3600.0  # after the last strike; the decoder may be a newer one by then
DIGEST_BYTES = 16
LARGE_BYTES = 1_000_000  # hashing takes 1 ms for each 2 MB: a larger photo is hashed in a thread


def folder() -> Path:
    """Where the processes of this user on this node share what they have in hand."""
    return Path(tempfile.gettempdir()) / f"recognition-{os.getuid()}"


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
    async def holding(self, image: bytes) -> AsyncIterator[str]:
        """Has a photo in hand until the block ends, and yields its name, the digest of its bytes.

        A photo with a strike waits until no other such photo is in hand, so that it takes no innocent one with it. Its
        strikes are forgiven once it is answered. Raises ImageQuarantined after STRIKES (2).
        """
        photo = await asyncio.to_thread(name_of, image) if len(image) > LARGE_BYTES else name_of(image)
        self.collect()
        if not self.strikes(photo):
            with self._held(photo):
                yield photo
            return
        async with self._alone:
            if (strikes := self.strikes(photo)) >= STRIKES:
                raise ImageQuarantined(
                    f"{strikes} processes died while they had this image: it is refused until {FORGOTTEN_S / 60:g} "
                    "minutes after the last time; send another image, or the same picture in another format"
                )
            with self._held(photo):
                try:
                    yield photo
                except AppError as error:
                    if error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                        self.forgive(photo)
                    raise
            self.forgive(photo)

    def strike(self, photo: str, process: str) -> None:
        """Notes that this process died with the photo in hand. The same process counts once."""
        logger.error("process %s died with photo %s in hand", process, photo)
        with self._logged():
            (self._strikes / photo).mkdir(exist_ok=True)
            (self._strikes / photo / process).touch()

    def strikes(self, photo: str) -> int:
        """How many processes died with the photo in hand, until FORGOTTEN_S (an hour) after the last."""
        try:
            if time.time() - (self._strikes / photo).stat().st_mtime < FORGOTTEN_S:
                return sum(1 for _ in (self._strikes / photo).iterdir())
        except OSError:
            return 0
        self.forgive(photo)
        return 0

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
                    held = {content[i : i + DIGEST_BYTES].hex() for i in range(0, len(content), DIGEST_BYTES)}
                    for photo in held - {bytes(DIGEST_BYTES).hex()}:
                        self.strike(photo, path.stem)
                    path.unlink()

    @contextmanager
    def _held(self, photo: str) -> Iterator[None]:
        if self._free:
            place = self._free.pop()
        else:
            place, self._places = self._places, self._places + 1
        self._write(place, bytes.fromhex(photo))
        try:
            yield
        finally:
            self._write(place, bytes(DIGEST_BYTES))
            self._free.append(place)

    def _write(self, place: int, content: bytes) -> None:
        if self._file is not None:
            with self._logged():
                os.pwrite(self._file, content, place * DIGEST_BYTES)

    @contextmanager
    def _logged(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.warning("photos are not protected against killing several processes: %s", error)


def name_of(image: bytes) -> str:
    """The digest of a photo's bytes, 32 hexadecimal digits."""
    return hashlib.sha256(image).hexdigest()[: 2 * DIGEST_BYTES]
