"""A run's plan: which photos, with which weights and options, in which parts. It is fixed once and kept in DEST.

    DEST/_sources.parquet     the addresses, in order
    DEST/_plan.json           everything else; written last, so that a plan that is there is complete
    DEST/part-000000.parquet  the rows of the first PART photos; and so on
    DEST/_summary.json        written when all parts are there
    DEST/_drawn/              the drawn photos, if they are wanted

A part is one file with a fixed name and a fixed list of photos. Whoever makes it, and however often, it holds one row
for each of them. So a run that was stopped goes on with the parts that are not there, and nothing else has to be
remembered. Readers of Parquet ignore names that begin with `_`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import pyarrow as pa
from pyarrow import parquet
from pydantic import BaseModel, ConfigDict, ValidationError

from serve_app.batch.storage import Storage
from serve_app.errors import CommandFailed
from serve_app.settings import PredictOptions

PLAN, SOURCES, SUMMARY, DRAWN = "_plan.json", "_sources.parquet", "_summary.json", "_drawn"
Format = Literal["parquet", "jsonl"]
# The settings on which rows depend. The others change speed and memory only.
SETTINGS = "image_size", "engine", "precision", "max_body_bytes", "max_image_pixels", "max_image_frames", "max_tiles"


class Asked(BaseModel):
    """What the command asks for. A run goes on only if this is the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    weights: str  # the setting; empty for that of the configuration
    options: PredictOptions
    format: Format
    drawn: bool  # whether the photos are drawn, too
    settings: dict[str, str | int | None] = {}  # SETTINGS, as the configuration has them


class Plan(BaseModel):
    """What a run does. `weights` is pinned, so all parts have the same ones whenever they are made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asked: Asked
    weights: str
    sha256: str
    task: str
    precision: str  # that of the first node: all of them have it, whatever is the fastest on their own CPU
    image_size: int  # longer side of the network input in pixels
    images: int
    part: int
    left_out: dict[str, int]

    @property
    def parts(self) -> int:
        """The number of parts."""
        return -(-self.images // self.part)

    def name(self, number: int) -> str:
        """The name of a part."""
        return f"part-{number:06d}.{self.asked.format}"

    def photos(self, number: int) -> int:
        """The number of photos in a part."""
        return min(self.part, self.images - number * self.part)


def read(dest: str, storage: Storage, asked: Asked) -> Plan | None:
    """The plan that is in DEST, None if there is none. Raises CommandFailed if it is another run's."""
    if not storage.exists(f"{dest}/{PLAN}"):
        return None
    try:
        plan = Plan.model_validate_json(storage.read(f"{dest}/{PLAN}"))
    except ValidationError as error:
        raise CommandFailed(f"{dest}/{PLAN} is not a plan of this release: choose another --out") from error
    differing = [name for name in Asked.model_fields if getattr(plan.asked, name) != getattr(asked, name)]
    if differing:
        raise CommandFailed(f"{dest} has another run, which differs in {', '.join(differing)}: choose another --out")
    return plan


def write(plan: Plan, photos: Sequence[str], dest: str, storage: Storage) -> None:
    """Writes a new plan and its list of photos. Raises CommandFailed if DEST has parts of an unknown run."""
    if any(name.startswith("part-") for name in storage.names(dest, deep=False)):
        raise CommandFailed(f"{dest} has parts of another run, but not its {PLAN}: choose another --out")
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"source": pa.array(photos, pa.string())}), buffer)
    storage.write(f"{dest}/{SOURCES}", buffer.getvalue())
    storage.write(f"{dest}/{PLAN}", plan.model_dump_json(indent=2, exclude_unset=True).encode())


def missing(plan: Plan, dest: str, storage: Storage) -> list[tuple[int, list[str]]]:
    """The parts that are not there yet: their numbers and photos. Raises CommandFailed."""
    there = set(storage.names(dest, deep=False))
    photos = parquet.read_table(pa.BufferReader(storage.read(f"{dest}/{SOURCES}"))).column("source").to_pylist()
    if len(photos) != plan.images:
        raise CommandFailed(f"{dest}/{SOURCES} is not that of {PLAN}: choose another --out")
    parts = (photos[number * plan.part : (number + 1) * plan.part] for number in range(plan.parts))
    return [(number, part) for number, part in enumerate(parts) if plan.name(number) not in there]
