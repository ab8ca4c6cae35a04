"""Parses an HTTP request: body and query in, undecoded images and options out. Must not know what an image is.

A body is multipart with one or more `file` parts, a raw `image/*`, or JSON with `source`: one image or a list, each in
base64 or, for hosts that the settings allow, as an https URL. Options come from the query, form fields or JSON fields.
An option that is unknown or given twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from serve_app.errors import InvalidParameter, MalformedRequest, PayloadTooLarge, UnsupportedFormat
from serve_app.http import body, image_urls, json_text, request_options
from serve_app.settings import AppSettings, PredictOptions

# SageMaker's usual type for photos, and S3's for files of any kind.
RAW_TYPES = ("application/octet-stream", "application/x-image", "binary/octet-stream")
EXTENDED_FILENAME = re.compile(rb";\s*filename\*(\d+\*?)?\s*=", re.IGNORECASE)


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
    content = await body.read(request, settings)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        await _read_multipart(request, content, settings, fields)
    elif kind == "application/json":
        await _read_json(content, settings, fields)
    elif kind.startswith("image/") or kind in RAW_TYPES:
        fields.images.append(content)
    else:
        raise UnsupportedFormat(
            f"the content type {kind or '(none)'} is not supported: send multipart/form-data with `file`, "
            "an image/* body, or application/json with `source`"
        )
    if not fields.images:
        raise MalformedRequest("the request has no image: send `file` in a form, a raw image body, or `source` in JSON")
    check_count(len(fields.images), settings)
    return Upload(fields.images, request_options.parse(fields.options))


def check_count(images: int, settings: AppSettings) -> None:
    """Raises PayloadTooLarge if a request has too many images."""
    if images > settings.max_images:
        raise PayloadTooLarge(f"the request has {images} images, the limit is {settings.max_images}")


class _FormParser(MultiPartParser):
    """Takes a part whose only file name is RFC 2231's `filename*=` or `filename*0=` for a file, too."""

    def on_headers_finished(self) -> None:
        disposition = self._current_part.content_disposition
        if disposition and EXTENDED_FILENAME.search(disposition):
            self._current_part.content_disposition = disposition + b'; filename=""'  # nobody reads the name
        super().on_headers_finished()


async def _read_multipart(request: Request, content: bytes, settings: AppSettings, fields: _Fields) -> None:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield content

    # One file more than allowed, so that `read` raises the error that names the limit.
    parser = _FormParser(request.headers, stream(), max_files=settings.max_images + 1, max_fields=16)
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


async def _read_json(text: bytes, settings: AppSettings, fields: _Fields) -> None:
    content = json_text.load(text)
    if not isinstance(content, dict):
        raise MalformedRequest("the JSON body must be an object")
    source = content.pop("source", None)
    sources = source if isinstance(source, list) else [source]
    check_count(len(sources), settings)
    for item in sources:
        if not isinstance(item, str):
            raise MalformedRequest("`source` must be a base64 string or a list of them")
        is_url = item[:8].lower().startswith(("http://", "https://"))
        fields.images.append(await image_urls.fetch(item, settings) if is_url else json_text.from_base64(item))
    for name, value in content.items():
        fields.add(name, value)
