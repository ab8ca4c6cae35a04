"""Parses an HTTP request: body and query in, undecoded images and options out. Must not know what an image is.

A body is multipart with one or more `file` parts, a raw `image/*`, or JSON with `source`: one image or a list, each in
base64 or, for hosts that the settings allow, as an https URL. Options come from the query, form fields or JSON fields.
An option that is unknown or given twice is an error.
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

from serve_app.errors import InvalidParameter, MalformedRequest, PayloadTooLarge, UnsupportedFormat, UploadTooSlow
from serve_app.http import image_urls
from serve_app.settings import AppSettings, PredictOptions

MAX_JSON_ITEMS = 10_000  # commas and opening brackets in a JSON body, see load_json
MAX_OPTIONS = 16
MAX_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class Upload:
    """The undecoded images of one request, in the order in which they were sent, and its options."""

    images: list[bytes]
    options: PredictOptions


@dataclass(slots=True)
class _Fields:
    """Collects the images and options of a request."""

    images: list[bytes] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: object) -> None:
        if name in self.options:
            raise InvalidParameter(f"`{name}` is given more than once: send it once")
        self.options[name] = value


async def read(request: Request, settings: AppSettings) -> Upload:
    """Reads and parses a request.

    Raises MalformedRequest, PayloadTooLarge, UploadTooSlow, UnsupportedFormat, InvalidParameter or SourceUnavailable.
    """
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
            f"the content type {kind or '(none)'} is not supported: send multipart/form-data with `file`, "
            "an image/* body, or application/json with `source`"
        )
    if not fields.images:
        raise MalformedRequest("the request has no image: send `file` in a form, a raw image body, or `source` in JSON")
    if len(fields.images) > settings.max_images:
        raise PayloadTooLarge(f"the request has {len(fields.images)} images, the limit is {settings.max_images}")
    return Upload(fields.images, parse_options(fields.options))


async def read_body(request: Request, settings: AppSettings) -> bytes:
    """Reads the whole body. Stops if it is too large, whatever Content-Length says, or arrives too slowly.

    After `upload_grace_s` the upload must keep up `min_upload_bytes_per_s` on average, so that a slow connection passes
    and a stalled one does not. Raises PayloadTooLarge, UploadTooSlow or MalformedRequest.
    """
    declared, max_bytes = request.headers.get("content-length", "0"), settings.max_body_bytes
    if declared.isdigit() and int(declared) > max_bytes:
        raise PayloadTooLarge(f"the body has {declared} bytes, the limit is {max_bytes}: send fewer or smaller images")
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
            slowest = f"the minimum is {settings.min_upload_bytes_per_s} bytes per second"
            raise UploadTooSlow(f"only {len(body)} bytes arrived in {clock() - started:.1f} s, {slowest}") from None
        except ClientDisconnect as error:
            raise MalformedRequest("the client closed the connection before the end of the body") from error
        if len(body) > max_bytes:
            raise PayloadTooLarge(
                f"the body is larger than the limit of {max_bytes} bytes: send fewer or smaller images"
            )


async def _read_multipart(request: Request, body: bytes, settings: AppSettings, fields: _Fields) -> None:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    # One file more than allowed, so that `read` raises the error that names the limit.
    parser = MultiPartParser(request.headers, stream(), max_files=settings.max_images + 1, max_fields=16)
    parser.spool_max_size = settings.max_body_bytes  # no temporary files: the body is bounded and already in memory
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise PayloadTooLarge(f"the request has too many images, the limit is {settings.max_images}") from error
        raise MalformedRequest(f"the multipart body cannot be read: {error.message}") from error
    except (KeyError, ValueError) as error:  # the parser raises these without a boundary, or for a bad header
        raise MalformedRequest("the multipart body cannot be read: check its boundary and headers") from error
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "file":
                raise InvalidParameter(f"the file field `{name}` is unknown: name it `file`")
            fields.images.append(await value.read())
        elif name == "file":
            raise MalformedRequest("`file` has no filename: send it as a file, not as text")
        else:
            fields.add(name, value)


async def _read_json(body: bytes, settings: AppSettings, fields: _Fields) -> None:
    content = load_json(body)
    if not isinstance(content, dict):
        raise MalformedRequest("the JSON body must be an object")
    source = content.pop("source", None)
    sources = source if isinstance(source, list) else [source]
    if len(sources) > settings.max_images:
        raise PayloadTooLarge(f"the request has {len(sources)} images, the limit is {settings.max_images}")
    for item in sources:
        if not isinstance(item, str):
            raise MalformedRequest("`source` must be a base64 string or a list of them")
        is_url = item[:8].lower().startswith(("http://", "https://"))
        fields.images.append(await image_urls.fetch(item, settings) if is_url else from_base64(item))
    for name, value in content.items():
        fields.add(name, value)


def load_json(body: bytes) -> object:
    """Parses JSON. Raises MalformedRequest if it is invalid, has a key twice, or has more than MAX_JSON_ITEMS items.

    Items are counted by commas and brackets before parsing, because 20 MB of `{},` would become 450 MB of objects.
    Base64 contains neither.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_JSON_ITEMS:
        raise MalformedRequest(f"the JSON body has more items than the limit of {MAX_JSON_ITEMS}")

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise MalformedRequest("the JSON body has a key more than once: send it once")
        return dict(pairs)

    try:
        return json.loads(body, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest("the body is not valid JSON") from error


def from_base64(text: str) -> bytes:
    """Decodes standard base64, with or without a `data:` prefix. Raises MalformedRequest."""
    try:
        return base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except ValueError as error:  # also for text that is not ASCII
        raise MalformedRequest("an image is not valid base64") from error


def parse_options(given: dict[str, Any]) -> PredictOptions:
    """Validates the options. `classes` is a list of ids, or text like `0,5`. Raises InvalidParameter."""
    if len(given) > MAX_OPTIONS:
        raise InvalidParameter(f"the request has {len(given)} options, only {len(PredictOptions.model_fields)} exist")
    values = dict(given)
    classes = values.get("classes")
    if isinstance(classes, str):
        values["classes"] = classes = classes.split(",", MAX_CLASSES + 1) if classes else None
    if isinstance(classes, list) and len(classes) > MAX_CLASSES:
        raise InvalidParameter(f"`classes`: must not have more than {MAX_CLASSES} ids")
    try:
        return PredictOptions.model_validate(values)
    except ValidationError as error:
        problems = (f"`{str(e['loc'][0])[:40]}`: {e['msg']}" for e in error.errors(include_input=False)[:5])
        raise InvalidParameter("; ".join(problems)) from error
