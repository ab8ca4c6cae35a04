from __future__ import annotations

import base64
import textwrap
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import MalformedRequest
from serve_app.http.json_text import from_base64


def plain(data: bytes) -> str:
    return base64.b64encode(data).decode()


WRITERS: dict[str, Callable[[bytes], str]] = {
    "plain": plain,
    "MIME, 76 characters a line": lambda data: base64.encodebytes(data).decode(),
    "PEM, 64 characters and CRLF": lambda data: "\r\n".join(textwrap.wrap(plain(data), 64)) + "\r\n",
    "URL-safe": lambda data: base64.urlsafe_b64encode(data).decode(),
    "URL-safe without padding (JWT)": lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
    "without padding": lambda data: plain(data).rstrip("="),
    "a data URL": lambda data: f"data:image/jpeg;base64,{plain(data)}",
    "a data URL with a line end": lambda data: f"data:image/png;charset=x;base64,{plain(data)}\n",
    "indented, as in YAML": lambda data: textwrap.indent(base64.encodebytes(data).decode(), "    "),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@given(data=st.binary(max_size=200))
def test_any_kind_is_read(write: Callable[[bytes], str], data: bytes) -> None:
    assert from_base64(write(data)) == data


@pytest.mark.parametrize(
    "text", ["%", "a", "abcde", "aGk=aGk=", "aGk,", "aGk\u00e9", "\ud800", "data:image/png,aGk=", "a Gk=x", "aGk=\0"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(MalformedRequest, match="not valid base64"):
        from_base64(text)
