"""Which photo kills a process. Ray makes a part again whenever its process has died, and would do so for ever.

A file on this machine has a line for each try of a part, with the photos that it began. The last one of a line is the
one during which the process died.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_app.errors import CommandFailed

AFTER = -1  # the place of no photo: all were done
MANY = 5  # deadly photos in one part: the memory is too small rather than the photos bad
MOST = 3  # deaths with the same photo in hand: once or twice may be chance, such as a lost node or too little memory


class Attempts:
    """The tries of a stage at one part on this machine."""

    def __init__(self, dest: str, stage: str, number: int) -> None:
        run = hashlib.sha256(dest.encode(errors="replace")).hexdigest()[:16]
        self._path = Path(tempfile.gettempdir()) / f"batch-{run}" / f"{stage}-{number}"
        self._what = f"part {number} of {dest}"

    @contextmanager
    def noted(self) -> Iterator[tuple[set[int], Attempt]]:
        """Yields the places of the photos that have killed MOST tries, and what notes those that this try begins.

        Raises CommandFailed if the process dies for other reasons than a few photos.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        deaths = Counter(int(line.split()[-1]) for line in lines if line.strip())
        deadly = {place for place, died in deaths.items() if died >= MOST}
        if AFTER in deadly or len(deadly) >= MANY:
            raise CommandFailed(
                f"the process of {self._what} dies again and again: try a smaller --part, or more memory"
            )
        file = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        try:
            os.write(file, b"\n")
            yield deadly, Attempt(file)
        finally:  # also after an exception, such as a store's that fails: only a process that dies leaves the file
            self._path.unlink(missing_ok=True)
            os.close(file)


class Attempt:
    """One try."""

    def __init__(self, file: int) -> None:
        self._file = file

    def begins(self, place: int) -> None:
        """Notes the photo at this place of the part, before anything is done with it."""
        os.write(self._file, f"{place} ".encode())

    def ends(self) -> None:
        """Notes that no photo is in hand any more: a death from here on is none of theirs."""
        self.begins(AFTER)
