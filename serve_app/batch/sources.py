"""SOURCE: which photos a run is about. A folder, a glob, `s3://bucket/prefix`, one photo, or a list of addresses.

Of a folder or prefix it takes the files that have the name of an image. Of a glob or a list it takes all.
"""

from __future__ import annotations

import csv
import glob
import io
import os
import posixpath
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from serve_app.batch.plan import DRAWN
from serve_app.batch.s3 import split
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

    def add(self, addresses: Iterable[str], *, only_images: bool = False) -> None:
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


def found(source: str, storage: Storage) -> Sources:
    """The photos that an absolute SOURCE means, in a stable order. Raises CommandFailed if there are none."""
    photos, remote = Sources(), source.startswith(SCHEME)
    suffix = PurePosixPath(source).suffix.lower()
    try:
        if suffix in LISTS:
            photos.add(listed(source, storage))
        elif storage.exists(source) if remote else Path(source).is_file():
            photos.add([source])
        elif remote and glob.has_magic(source):
            raise CommandFailed(f"{source}: there is no such object, and no glob in S3: name a prefix")
        elif remote or Path(source).is_dir():
            names = (name for name in sorted(storage.names(source)) if f"/{DRAWN}/" not in f"/{name}")
            photos.add((f"{source}/{name}" for name in names), only_images=True)
        elif glob.has_magic(source):
            matches = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 - a pattern may begin with /
            files = {os.path.realpath(path): path for path in reversed(matches) if not Path(path).is_dir()}
            photos.add(sorted(files.values()))
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
    try:
        rows = from_parquet(content, address) if kind == ".parquet" else from_text(content, address, kind == ".csv")
    except (UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise CommandFailed(f"{address} cannot be read as {kind}: {error}") from error
    base = address.rpartition("/")[0]
    return [inside(row, base) for row in rows if row]


def from_parquet(content: bytes, address: str) -> list[str]:
    """The addresses in a Parquet file. Raises CommandFailed or ArrowException."""
    table = parquet.read_table(pa.BufferReader(content))
    found: list[str] = table.column(the_column(table.column_names, address)).cast(pa.string()).to_pylist()
    return found


def from_text(content: bytes, address: str, is_csv: bool) -> list[str]:
    """The addresses in lines, or in a CSV file. Raises CommandFailed, UnicodeDecodeError or csv.Error."""
    text = content.decode("utf-8-sig")
    if not is_csv:
        return [line.strip() for line in text.split("\n")]
    lines = csv.DictReader(io.StringIO(text, newline=""))
    column = the_column(lines.fieldnames or (), address)
    return [(line[column] or "").strip() for line in lines]


def the_column(names: Iterable[str], address: str) -> str:
    """The name of the column with the addresses. Raises CommandFailed."""
    columns = list(names)
    if COLUMN in columns:
        return COLUMN
    # A first line that is an address itself, or has another separator than a comma, is no name of a column.
    if len(columns) == 1 and not set(columns[0]) & set("./;|\t"):
        return columns[0]
    raise CommandFailed(f"{address} has the columns {', '.join(columns)}: name the one with the addresses `{COLUMN}`")


def inside(address: str, base: str) -> str:
    """An address of a list as an absolute one. Raises CommandFailed for another scheme than S3's."""
    scheme, separator, _ = address.partition("://")
    if separator and scheme != "s3":
        raise CommandFailed(f"{address}: a list may have paths and s3:// addresses, not {scheme}://")
    if separator:
        split(address)
        return address
    if base.startswith(SCHEME) and not address.startswith("/"):
        bucket, key = split(base)
        return f"{SCHEME}{bucket}/{posixpath.normpath(f'{key}/{address}').lstrip('/')}"
    return os.path.normpath(f"{base}/{address}" if not address.startswith("/") else address)
