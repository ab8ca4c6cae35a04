"""An HTTP request in, images and options out. Knows HTTP bodies, not what an image is.

Three bodies: multipart with one or more `file` parts, a raw `image/*`, or JSON with `source` in base64 (one, or a
list). Options come from the query, form fields or JSON fields; one given twice or unknown is an error.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from serve_app.errors import InvalidParameter, MalformedRequest, PayloadTooLarge, UnsupportedFormat
from serve_app.settings import AppSettings, DetectOptions


@dataclass(frozen=True, slots=True)
class Upload:
    """The images of one request, undecoded, in the order they were sent, and what was asked of them."""

    images: list[bytes]
    options: DetectOptions


@dataclass(slots=True)
class _Fields:
    """Collects images and options of whichever body it was."""

    images: list[bytes] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: object) -> None:
        if name in self.options:
            raise InvalidParameter(f"`{name}` is given more than once")
        self.options[name] = value


async def read(request: Request, settings: AppSettings) -> Upload:
    """Raises MalformedRequest, PayloadTooLarge, UnsupportedFormat or InvalidParameter."""
    fields = _Fields()
    for name, value in request.query_params.multi_items():
        fields.add(name, value)
    body = await read_body(request, settings.max_body_bytes)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        await _read_multipart(request, body, settings, fields)
    elif kind == "application/json":
        _read_json(body, fields)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        fields.images.append(body)
    else:
        raise UnsupportedFormat(
            f"content type {kind or '(none)'}: send multipart/form-data with `file`, an image/* body, "
            "or application/json with `source`"
        )
    if not fields.images:
        raise MalformedRequest("no image: send `file` in a form, a raw image body, or `source` in JSON")
    if len(fields.images) > settings.max_images:
        raise PayloadTooLarge(f"{len(fields.images)} images, the limit is {settings.max_images} in one request")
    return Upload(fields.images, parse_options(fields.options))


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body; stops reading as soon as it is too large, whatever Content-Length says."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_bytes:
        raise PayloadTooLarge(f"the body has {declared} bytes, the limit is {max_bytes}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise PayloadTooLarge(f"the body has more than {max_bytes} bytes")
    return bytes(body)


async def _read_multipart(request: Request, body: bytes, settings: AppSettings, fields: _Fields) -> None:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    # One file more than allowed, so that the error is ours and names the limit.
    parser = MultiPartParser(request.headers, stream(), max_files=settings.max_images + 1, max_fields=16)
    parser.spool_max_size = settings.max_body_bytes  # the body is bounded and in memory already: no temporary files
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise PayloadTooLarge(f"more than {settings.max_images} images in one request") from error
        raise MalformedRequest(f"the multipart body cannot be read: {error.message}") from error
    except (KeyError, ValueError) as error:  # what the parser raises without a boundary, or on a bad header
        raise MalformedRequest("the multipart body cannot be read") from error
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "file":
                raise InvalidParameter(f"unknown file field `{name}`: call it `file`")
            fields.images.append(await value.read())
        elif name == "file":
            raise MalformedRequest("`file` is a text field: send it as a file, with a filename")
        else:
            fields.add(name, value)


def _read_json(body: bytes, fields: _Fields) -> None:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest("the body is not valid JSON") from error
    if not isinstance(content, dict):
        raise MalformedRequest("the JSON body is not an object")
    source = content.pop("source", None)
    for item in source if isinstance(source, list) else [source]:
        if not isinstance(item, str):
            raise MalformedRequest("`source` is missing or not a base64 string, or a list of them")
        try:
            fields.images.append(base64.b64decode(item.rpartition("base64,")[2], validate=True))
        except (binascii.Error, ValueError) as error:
            raise MalformedRequest("`source` is not valid base64") from error
    for name, value in content.items():
        fields.add(name, value)


def parse_options(given: dict[str, Any]) -> DetectOptions:
    """Checks the options, `classes` as a list of ids or as text like `0,5`. Raises InvalidParameter."""
    values = dict(given)
    if isinstance(values.get("classes"), str):
        values["classes"] = values["classes"].split(",") if values["classes"] else None
    try:
        return DetectOptions.model_validate(values)
    except ValidationError as error:
        problems = (f"`{'.'.join(map(str, e['loc'][:1]))}`: {e['msg']}" for e in error.errors())
        raise InvalidParameter("; ".join(problems)) from error
