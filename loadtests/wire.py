"""HTTP/1.1 as cheap as it gets, for a generator that shares its cores with the service it overloads."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast
from urllib.parse import urlsplit

END = b"\r\n\r\n"


@dataclass(frozen=True)
class Answer:
    """Header names are lower case."""

    status: HTTPStatus
    headers: dict[str, str]
    body: bytes


class Connection(asyncio.Protocol):
    """One kept connection, one request at a time; answers must have a Content-Length."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received, self._length = bytearray(), -1
        self._answer: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods only

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        self._received += data
        head = self._received.find(END)
        if head < 0 or not self._answer or self._answer.done():
            return
        first, *lines = bytes(self._received[:head]).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        end = head + len(END) + int(headers["content-length"])
        if len(self._received) >= end:
            answer = Answer(HTTPStatus(int(first.split()[1])), headers, bytes(self._received[head + len(END) : end]))
            del self._received[:end]
            self._answer.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio."""
        if self._answer and not self._answer.done():
            self._answer.set_exception(ConnectionResetError(f"closed: {exc}"))
        self._transport = None

    @property
    def alive(self) -> bool:
        """Whether another request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def send(self, request: bytes) -> Answer:
        """Raises ConnectionError."""
        if not self._transport:
            raise ConnectionResetError("closed before the request")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer


class Wire:
    """As many connections to one service as there are requests at a time."""

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url)  # http, with a port
        self._free: list[Connection] = []

    def request(self, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        """A POST, ready to be sent any number of times."""
        lines = [f"POST {path} HTTP/1.1", f"Host: {self._to.netloc}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join(lines).encode() + END + body

    async def send(self, request: bytes) -> Answer:
        """On a free connection, or a new one. Raises OSError."""
        connection = self._free.pop() if self._free else None
        if not connection or not connection.alive:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, self._to.hostname or "", self._to.port or 80)
        answer = await connection.send(request)
        if answer.headers.get("connection", "").lower() != "close":
            self._free.append(connection)
        return answer
