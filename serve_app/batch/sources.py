"""SOURCE: which photos a run is about. A folder, a glob, `s3://bucket/prefix`, one photo, or a list of addresses.

Of a folder or prefix it takes the files that have the name of an image. Of a glob or a list it takes all.
"""

from __future__ import annotations

import csv
import glob
import io
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from serve_app.batch.storage import Storage
from serve_app.errors import AppError, CommandFailed
from serve_app.vision.image import FORMATS
from serve_app.weights.address import SCHEME

# With JPEG XL, which is refused with its own reason: a photo in it is a photo that failed, not a file of another kind.
SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS} | {".mpo", ".jxl"}
LISTS = {".txt", ".csv", ".parquet"}
COLUMN = "source"


@dataclass
class Sources:
    """Addresses of photos, each once, and what was left out: how many files for each reason."""

    photos: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, addresses: Iterable[str], *, only_images: bool = False) -> Sources:
        """Adds addresses in their order; with `only_images` those that have the name of an image."""
        known = set(self.photos)
        for address in addresses:
            suffix = PurePosixPath(address).suffix.lower()
            if only_images and suffix not in SUFFIXES:
                self.left_out[f"{suffix or 'no suffix'}: no format that is read here"] += 1
            elif address.encode(errors="replace").decode() != address:  # Python has read other bytes as surrogates
                self.left_out["the name is not UTF-8"] += 1
            elif address in known:
                self.left_out["named twice"] += 1
            else:
                known.add(address)
                self.photos.append(address)
        return self


def found(source: str, storage: Storage) -> Sources:
    """The photos that an absolute SOURCE means, in a stable order. Raises CommandFailed if there are none."""
    photos, remote = Sources(), source.startswith(SCHEME)
    try:
        if PurePosixPath(source).suffix.lower() in LISTS:
            photos.add(listed(source, storage))
        elif (remote and PurePosixPath(source).suffix.lower() in SUFFIXES) or Path(source).is_file():
            photos.add([source])
        elif remote or Path(source).is_dir():
            photos.add((f"{source}/{name}" for name in sorted(storage.names(source))), only_images=True)
        elif glob.has_magic(source):
            matches = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 - a pattern may begin with /
            photos.add(path for path in matches if not Path(path).is_dir())
        else:
            raise CommandFailed(f"{source}: there is no such file or folder")
    except AppError as error:
        raise CommandFailed(f"{source}: {error}") from error
    if not photos.photos:
        why = "".join(f"; {count} left out, {reason}" for reason, count in photos.left_out.items())
        raise CommandFailed(f"{source}: no photos there{why}")
    return photos


def listed(address: str, storage: Storage) -> list[str]:
    """The addresses in a list: lines of text, or the column `source` of CSV or Parquet, or its only column.

    A relative path starts at the list's own folder. Raises AppError or CommandFailed.
    """
    content, kind = storage.read(address), PurePosixPath(address).suffix.lower()
    if kind == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        try:
            table = parquet.read_table(pa.BufferReader(content))
            rows = table.column(the_column(table.column_names, address)).to_pylist()
        except pa.ArrowException as error:
            raise CommandFailed(f"{address} is not a Parquet file: {error}") from error
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CommandFailed(f"{address} is not UTF-8: {error}") from error
        rows = text.splitlines()
        if kind == ".csv":
            lines = csv.DictReader(io.StringIO(text))
            column = the_column(lines.fieldnames or (), address)
            rows = [line[column] for line in lines]
    base = address.rpartition("/")[0]
    return [inside(row.strip(), base) for row in rows if row and row.strip()]


def the_column(names: Iterable[str], address: str) -> str:
    """The name of the column with the addresses. Raises CommandFailed."""
    columns = list(names)
    if COLUMN in columns:
        return COLUMN
    if len(columns) == 1:
        return columns[0]
    raise CommandFailed(f"{address} has the columns {', '.join(columns)}: name the one with the addresses `{COLUMN}`")


def inside(address: str, base: str) -> str:
    """An address of a list as an absolute one. Raises CommandFailed for another scheme than S3's."""
    scheme, separator, _ = address.partition("://")
    if separator and scheme != "s3":
        raise CommandFailed(f"{address}: a list may have paths and s3:// addresses, not {scheme}://")
    if separator or address.startswith("/"):
        return address
    return f"{base}/{address}" if base.startswith(SCHEME) else os.path.normpath(f"{base}/{address}")
