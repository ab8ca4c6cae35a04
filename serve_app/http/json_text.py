"""JSON and base64, as clients send them."""

from __future__ import annotations

import base64
import json
from typing import Any

from serve_app.errors import MalformedRequest

MAX_ITEMS = 10_000  # commas and opening brackets, see load


def load(text: bytes) -> object:
    """Parses JSON. Raises MalformedRequest if it is invalid, has a key twice, or has more than MAX_ITEMS items.

    Items are counted by commas and brackets before parsing, because 20 MB of `{},` would become 450 MB of objects.
    Base64 contains neither.
    """
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > MAX_ITEMS:
        raise MalformedRequest(f"the JSON has more items than the limit of {MAX_ITEMS}")

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise MalformedRequest("the JSON has a key more than once: send it once")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest("the text is not valid JSON") from error


def from_base64(text: str) -> bytes:
    """Decodes base64: also with line breaks, URL-safe, without padding, after `data:`. Raises MalformedRequest."""
    content = "".join(text.rpartition("base64,")[2].split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(content + "=" * (-len(content) % 4), validate=True)
    except ValueError as error:  # also for text that is not ASCII
        raise MalformedRequest("an image is not valid base64") from error
