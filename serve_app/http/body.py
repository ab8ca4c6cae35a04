"""Reads a request's body: bounded in bytes, also once unpacked, and in time. Must not know what the body holds."""

from __future__ import annotations

import asyncio
import zlib

from fastapi import Request

from serve_app.errors import MalformedRequest, PayloadTooLarge, UnsupportedFormat, UploadTooSlow
from serve_app.settings import AppSettings

FROZEN_S = 0.2  # a deadline that is noticed so late passed while the process was frozen: what was sent waits to be read
GZIP = zlib.MAX_WBITS | 16  # zlib's number for the gzip format


async def read(request: Request, settings: AppSettings) -> bytes:
    """The whole body, unpacked if its Content-Encoding is gzip.

    Raises MalformedRequest, PayloadTooLarge, UnsupportedFormat or UploadTooSlow.
    """
    encodings = [e.strip().lower() for e in request.headers.get("content-encoding", "").split(",")]
    encodings = [e for e in encodings if e not in ("", "identity")]
    if encodings not in ([], ["gzip"], ["x-gzip"]):
        raise UnsupportedFormat(
            f"the content encoding {', '.join(encodings)[:80]} is not supported: send gzip, or the body as it is"
        )
    packed = await _received(request, settings)
    return await asyncio.to_thread(unpacked, packed, settings.max_body_bytes) if encodings else packed


async def _received(request: Request, settings: AppSettings) -> bytes:
    """The body as it was sent. Stops if it is too large, whatever Content-Length says, or arrives too slowly.

    After `upload_grace_s` the upload must keep up `min_upload_bytes_per_s` on average, so that a slow connection passes
    and a stalled one does not.
    """
    declared, max_bytes = request.headers.get("content-length", "0"), settings.max_body_bytes
    if declared.isdigit() and int(declared) > max_bytes:
        raise PayloadTooLarge(f"the body has {declared} bytes, the limit is {max_bytes}: send fewer or smaller images")
    clock = asyncio.get_running_loop().time
    started, body, more = clock(), bytearray(), True
    while more:
        deadline = started + settings.upload_grace_s + len(body) / settings.min_upload_bytes_per_s
        try:
            async with asyncio.timeout_at(deadline):
                message = await request.receive()
        except TimeoutError:
            if (late := clock() - deadline) > FROZEN_S:
                started += late
                continue
            slowest = f"the minimum is {settings.min_upload_bytes_per_s} bytes per second"
            raise UploadTooSlow(f"only {len(body)} bytes arrived in {clock() - started:.1f} s, {slowest}") from None
        if message["type"] == "http.disconnect":
            raise MalformedRequest("the client closed the connection before the end of the body")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > max_bytes:
            raise PayloadTooLarge(
                f"the body is larger than the limit of {max_bytes} bytes: send fewer or smaller images"
            )
    return bytes(body)


def unpacked(packed: bytes, max_bytes: int) -> bytes:
    """The content of one or more gzip members (RFC 1952). Never holds more than `max_bytes` + 1 bytes of it.

    Raises MalformedRequest or PayloadTooLarge.
    """
    content, rest = bytearray(), packed
    while rest:
        member = zlib.decompressobj(GZIP)
        try:
            content += member.decompress(rest, max_bytes + 1 - len(content))
        except zlib.error as error:
            raise MalformedRequest(f"the body is not valid gzip: {error}") from error
        if len(content) > max_bytes:
            raise PayloadTooLarge(f"the body, unpacked, is larger than the limit of {max_bytes} bytes")
        if not member.eof:
            raise MalformedRequest("the body is not valid gzip: it is cut off")
        rest = member.unused_data
    if not packed:
        raise MalformedRequest("the body is not valid gzip: it is empty")
    return bytes(content)
