"""An HTTP request in, images and options out. Knows HTTP bodies, not what an image is.

Three bodies: multipart with one or more `file` parts, a raw `image/*`, or JSON with `source` in base64 (one, or a
list; or https URLs of hosts that the settings allow). Options come from the query, form fields or JSON fields; one
given twice or unknown is an error.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from serve_app import remote
from serve_app.errors import InvalidParameter, MalformedRequest, PayloadTooLarge, UnsupportedFormat, UploadTooSlow
from serve_app.settings import AppSettings, PredictOptions

MAX_JSON_ITEMS = 10_000
MAX_OPTIONS = 16
MAX_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class Upload:
    """The images of one request, undecoded, in the order they were sent, and what was asked of them."""

    images: list[bytes]
    options: PredictOptions


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
    """Raises MalformedRequest, PayloadTooLarge, UploadTooSlow, UnsupportedFormat or InvalidParameter."""
    fields = _Fields()
    for name, value in request.query_params.multi_items():
        fields.add(name, value)
    body = await read_body(request, settings)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        await _read_multipart(request, body, settings, fields)
    elif kind == "application/json":
        await _read_json(body, settings, fields)
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


async def read_body(request: Request, settings: AppSettings) -> bytes:
    """The whole body; stops reading when it is too large, whatever Content-Length says, or drips in too slowly.

    After a grace an upload must have kept up its rate on average: a slow connection passes, a stalled one does not.
    """
    declared, max_bytes = request.headers.get("content-length", "0"), settings.max_body_bytes
    if declared.isdigit() and int(declared) > max_bytes:
        raise PayloadTooLarge(f"the body has {declared} bytes, the limit is {max_bytes}")
    clock = asyncio.get_running_loop().time
    started, body, chunks = clock(), bytearray(), aiter(request.stream())
    while True:
        deadline = started + settings.upload_grace_s + len(body) / settings.min_upload_bytes_per_s
        try:
            async with asyncio.timeout_at(deadline):
                body += await anext(chunks)
        except StopAsyncIteration:
            return bytes(body)
        except TimeoutError:
            raise UploadTooSlow(f"only {len(body)} bytes came in {clock() - started:.1f} s") from None
        except ClientDisconnect as error:
            raise MalformedRequest("the client hung up in the middle of the body") from error
        if len(body) > max_bytes:
            raise PayloadTooLarge(f"the body has more than {max_bytes} bytes")


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


async def _read_json(body: bytes, settings: AppSettings, fields: _Fields) -> None:
    content = load_json(body)
    if not isinstance(content, dict):
        raise MalformedRequest("the JSON body is not an object")
    source = content.pop("source", None)
    sources = source if isinstance(source, list) else [source]
    if len(sources) > settings.max_images:
        raise PayloadTooLarge(f"{len(sources)} images, the limit is {settings.max_images} in one request")
    for item in sources:
        if not isinstance(item, str):
            raise MalformedRequest("`source` is missing or not a base64 string, or a list of them")
        is_url = item[:8].lower().startswith(("http://", "https://"))
        fields.images.append(await remote.fetch(item, settings) if is_url else from_base64(item))
    for name, value in content.items():
        fields.add(name, value)


def load_json(body: bytes) -> object:
    """JSON that is mostly text. Raises MalformedRequest, also when it is mostly structure, or a key comes twice.

    Base64 has no brackets and no commas, while 20 MB of `{},` would become 450 MB of objects.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_JSON_ITEMS:
        raise MalformedRequest(f"JSON of more than {MAX_JSON_ITEMS} items")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise MalformedRequest("the JSON has a key more than once")
        return dict(pairs)

    try:
        return json.loads(body, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest("the body is not valid JSON") from error


def from_base64(text: str) -> bytes:
    """The bytes of standard base64, with or without a `data:` prefix. Raises MalformedRequest."""
    try:
        return base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except ValueError as error:  # also of text that is not ASCII
        raise MalformedRequest("`source` is not valid base64") from error


def parse_options(given: dict[str, Any]) -> PredictOptions:
    """Checks the options, `classes` as a list of ids or as text like `0,5`. Raises InvalidParameter."""
    if len(given) > MAX_OPTIONS:
        raise InvalidParameter(f"{len(given)} options, there are {len(PredictOptions.model_fields)}")
    values = dict(given)
    classes = values.get("classes")
    if isinstance(classes, str):
        values["classes"] = classes = classes.split(",", MAX_CLASSES + 1) if classes else None
    if isinstance(classes, list) and len(classes) > MAX_CLASSES:
        raise InvalidParameter(f"`classes`: more than {MAX_CLASSES} ids")
    try:
        return PredictOptions.model_validate(values)
    except ValidationError as error:
        problems = (f"`{str(e['loc'][0])[:40]}`: {e['msg']}" for e in error.errors(include_input=False)[:5])
        raise InvalidParameter("; ".join(problems)) from error
