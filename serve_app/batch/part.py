"""A part on its way through the stages. In Ray it is an Arrow table of one row, whose arrays nobody copies again."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from serve_app.weights.identity import Weights

Table = Any  # Arrow's types are not typed


@dataclass(frozen=True)
class Part:
    """Photos by their addresses. `photos` has what the last stage made of each, or its AppError."""

    number: int
    sources: list[str]
    photos: Sequence[Any] = ()
    weights: Weights | None = None  # those of the network that it went through


def packed(part: Part) -> Table:
    """The part as a table. Its arrays lie in one buffer, which Ray writes to its memory."""
    arrays: list[memoryview] = []
    content = pickle.dumps(part, protocol=5, buffer_callback=lambda one: arrays.append(one.raw()))
    ends = pa.py_buffer(np.cumsum([0, *map(len, arrays)]))
    values = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(arrays), [None, ends, pa.py_buffer(b"".join(arrays))]
    )
    return pa.table(
        {
            "part": pa.array([content], pa.large_binary()),
            "arrays": pa.LargeListArray.from_arrays([0, len(arrays)], values),
        }
    )


def unpacked(table: Table) -> Part:
    """The part in a table. Its arrays are in Ray's memory, and cannot be written to."""
    arrays = [one.as_buffer() for one in table.column("arrays")[0].values]
    part: Part = pickle.loads(table.column("part")[0].as_py(), buffers=arrays)
    return part
