"""Bodies as clients pack and name them: gzip, other encodings, file names, raw types."""

from __future__ import annotations

import asyncio
import gzip
import time
import zlib

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from serve_app.errors import MalformedRequest, PayloadTooLarge, UploadTooSlow
from serve_app.http.body import read, unpacked
from serve_app.settings import AppSettings

HELLO = gzip.compress(b"hello")


def test_what_came_while_the_process_was_frozen_is_in_time() -> None:
    """The deadline passes meanwhile; a client that sends nothing is refused as ever."""
    settings = AppSettings(upload_grace_s=0.2)

    async def scenario() -> bytes:
        loop, parts = asyncio.get_running_loop(), asyncio.Queue[Message]()

        def freeze() -> None:
            time.sleep(0.5)
            parts.put_nowait({"type": "http.request", "body": HELLO, "more_body": False})

        loop.call_later(0.05, freeze)
        request = Request({"type": "http", "method": "POST", "headers": []}, parts.get)
        return await read(request, settings)

    assert asyncio.run(scenario()) == HELLO

    async def silent() -> None:
        request = Request({"type": "http", "method": "POST", "headers": []}, asyncio.Queue[Message]().get)
        await read(request, settings)

    with pytest.raises(UploadTooSlow, match="only 0 bytes arrived"):
        asyncio.run(silent())


def test_a_trickle_is_too_slow() -> None:
    async def trickle() -> Message:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def scenario() -> None:
        request = Request({"type": "http", "method": "POST", "headers": []}, trickle)
        async with asyncio.timeout(10):
            await read(request, AppSettings(upload_grace_s=0.2))

    with pytest.raises(UploadTooSlow, match="the minimum is 8192 bytes per second"):
        asyncio.run(scenario())


@given(parts=st.lists(st.binary(max_size=300), min_size=1, max_size=4))
def test_any_members_are_unpacked(parts: list[bytes]) -> None:
    content = b"".join(parts)
    assert unpacked(b"".join(map(gzip.compress, parts)), len(content)) == content


@pytest.mark.parametrize(
    ("packed", "kind"),
    [
        pytest.param(b"", MalformedRequest, id="nothing"),
        pytest.param(b"hello", MalformedRequest, id="text"),
        pytest.param(HELLO[:-1], MalformedRequest, id="without the last byte"),
        pytest.param(HELLO[:9], MalformedRequest, id="half a header"),
        pytest.param(HELLO[:-8] + bytes(8), MalformedRequest, id="a wrong checksum"),
        pytest.param(HELLO + b"x", MalformedRequest, id="one byte more"),
        pytest.param(HELLO + HELLO[:-1], MalformedRequest, id="a second member that is cut off"),
        pytest.param(zlib.compress(b"hello"), MalformedRequest, id="zlib"),
        pytest.param(gzip.compress(bytes(1001)), PayloadTooLarge, id="one byte too many"),
        pytest.param(gzip.compress(bytes(600)) * 2, PayloadTooLarge, id="too many in two members"),
        pytest.param(gzip.compress(bytes(50_000_000)), PayloadTooLarge, id="a bomb"),
    ],
)
def test_what_is_no_gzip_or_too_large(packed: bytes, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        unpacked(packed, 1000)


def boxes(answer: httpx.Response) -> list[dict[str, object]]:
    results: list[dict[str, object]] = answer.raise_for_status().json()["images"][0]["results"]
    return results


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", "identity, gzip", "identity", ""])
def test_an_encoded_body_finds_the_same(client: httpx.Client, bus: bytes, encoding: str) -> None:
    packed = gzip.compress(bus) if "gzip" in encoding.lower() else bus
    headers = {"Content-Type": "image/jpeg", "Content-Encoding": encoding}
    assert boxes(client.post("/v1/predict", content=packed, headers=headers)) == boxes(
        client.post("/v1/predict", files={"file": bus})
    )


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "compress", "gzip, gzip", "aws-chunked", "a" * 200])
def test_another_encoding_is_named(client: httpx.Client, bus: bytes, encoding: str) -> None:
    headers = {"Content-Type": "image/jpeg", "Content-Encoding": encoding}
    answer = client.post("/v1/predict", content=bus, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_format")
    assert encoding[:20] in answer.json()["detail"]
    assert "send gzip" in answer.json()["detail"]


def test_a_form_and_json_may_be_packed_and_a_bomb_harms_nothing(client: httpx.Client, bus: bytes) -> None:
    form = client.build_request("POST", "/v1/predict", files={"file": bus}, data={"conf": "0.5"})
    headers = {"Content-Encoding": "gzip"}
    typed = headers | {"Content-Type": form.headers["content-type"]}
    packed = client.post("/v1/predict", content=gzip.compress(form.read()), headers=typed)
    assert boxes(packed) == boxes(client.post("/v1/predict", files={"file": bus}, data={"conf": "0.5"}))
    typed = headers | {"Content-Type": "application/json"}
    bomb = client.post("/v1/predict", content=gzip.compress(bytes(100_000_000)), headers=typed)
    assert (bomb.status_code, bomb.json()["code"]) == (413, "payload_too_large")
    assert client.post("/v1/predict", files={"file": bus}).status_code == 200


@pytest.mark.parametrize(
    "disposition",
    [
        "form-data; name=\"file\"; filename*=UTF-8''stra%C3%9Fe.jpg",
        "form-data; name=file; filename*=iso-8859-1'de'stra%DFe.jpg",
        'form-data; filename*0="a"; filename*1=".jpg"; name="file"',
        "form-data; name=\"file\"; filename*0*=UTF-8''stra%C3; filename*1*=%9Fe.jpg",
        "form-data; name=\"file\"; FILENAME* = UTF-8''a.jpg",
        'form-data; name="file"; filename="a.jpg"; filename*=UTF-8\'\'b.jpg',
        'form-data; name="file"; filename=""',
    ],
)
def test_a_part_with_any_kind_of_file_name_is_a_file(client: httpx.Client, bus: bytes, disposition: str) -> None:
    body = b"--x\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + bus + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert boxes(client.post("/v1/predict", content=body, headers=headers)) == boxes(
        client.post("/v1/predict", files={"file": bus})
    )


@pytest.mark.parametrize(
    "kind", ["application/x-image", "application/octet-stream", "binary/octet-stream", "image/*", "IMAGE/JPG; q=1"]
)
@pytest.mark.parametrize("path", ["/v1/predict", "/invocations"])
def test_types_of_a_raw_photo(client: httpx.Client, bus: bytes, kind: str, path: str) -> None:
    assert boxes(client.post(path, content=bus, headers={"Content-Type": kind}))
