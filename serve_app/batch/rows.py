"""Rows: one for each photo, with the fields of an answer of `/v1/predict`, as Parquet or JSON lines."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from serve_app.batch.plan import Format
from serve_app.errors import AppError
from serve_app.graph.payloads import Finished
from serve_app.http.schemas import ImageAnswer, ModelCard
from serve_app.settings import PredictOptions
from serve_app.weights.identity import Weights

Row = dict[str, Any]
NUMBER, NUMBERS = pa.float64(), pa.list_(pa.float64())
ERRORS = b"errors"  # in the file's metadata: how many rows have which error, as JSON


def corners(count: int) -> Any:  # noqa: ANN401 - Arrow's types are not typed
    """A box by its corners."""
    return pa.struct([(f"{axis}{n}", NUMBER) for n in range(1, count + 1) for axis in "xy"])


BOX = ("box", corners(2))
PARTS = {  # what a result has besides class, name and confidence, by task
    "detect": [BOX],
    "segment": [BOX, ("segments", pa.struct([("x", NUMBERS), ("y", NUMBERS)]))],
    "pose": [BOX, ("keypoints", pa.struct([("x", NUMBERS), ("y", NUMBERS), ("visible", NUMBERS)]))],
    "obb": [("box", corners(4))],
    "classify": [],
}


def schema(task: str) -> Any:  # noqa: ANN401 - Arrow's types are not typed
    """The columns of a task. All parts of a run have the same, whatever their photos show."""
    result = [("class", pa.int32()), ("name", pa.string()), ("confidence", NUMBER), *PARTS[task]]
    speed = [(stage, NUMBER) for stage in ("preprocess", "inference", "postprocess")]
    model = [(name, pa.string()) for name in ("name", "version", "sha256", "precision")]
    return pa.schema(
        [
            pa.field("source", pa.string(), nullable=False),
            ("shape", pa.list_(pa.int32())),
            ("results", pa.list_(pa.struct(result))),
            ("tiles", pa.struct([("side", pa.int32()), ("count", pa.int32())])),
            ("speed", pa.struct(speed)),
            ("model", pa.struct(model)),
            ("error", pa.struct([("code", pa.string()), ("detail", pa.string())])),
        ]
    )


def of(source: str, done: Finished | AppError, weights: Weights, options: PredictOptions) -> Row:
    """The row of one photo. Its coordinates, times and errors are those of an answer."""
    answer = ImageAnswer.failed(done) if isinstance(done, AppError) else ImageAnswer.of(done, options)
    unused = {"batch_size", "queue_ms", "results"} if answer.error else {"batch_size", "queue_ms"}
    row = answer.model_dump(by_alias=True, exclude_none=True, exclude=unused)
    row.get("error", {}).pop("status", None)
    card = ModelCard.of(weights).model_dump(exclude={"bundled"}, exclude_none=True)
    return {"source": source, **row, "model": card}


def failed(rows: Iterable[Row]) -> Counter[str]:
    """How many rows have which error, by its code."""
    return Counter(row["error"]["code"] for row in rows if "error" in row)


def encoded(rows: list[Row], format: Format, task: str) -> bytes:  # noqa: A002 - the field's word
    """The content of a part."""
    if format == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    table = pa.Table.from_pylist(rows, schema(task).with_metadata({ERRORS: json.dumps(failed(rows))}))
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def counted(content: bytes, format: Format) -> tuple[int, Counter[str]]:  # noqa: A002 - the field's word
    """The number of rows in a part, and of those with an error by its code."""
    if format == "jsonl":
        rows = [json.loads(line) for line in content.splitlines()]
        return len(rows), failed(rows)
    footer = parquet.read_metadata(pa.BufferReader(content))
    return footer.num_rows, Counter(json.loads(footer.metadata[ERRORS]))
