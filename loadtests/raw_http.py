"""A minimal HTTP/1.1 client, for a load generator that shares its cores with the service that it overloads."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast
from urllib.parse import urlsplit

END = b"\r\n\r\n"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. Header names are lower case."""

    status: HTTPStatus
    headers: dict[str, str]
    body: bytes


class Connection(asyncio.Protocol):
    """One kept connection with one request at a time. Answers must have a Content-Length."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received, self._length = bytearray(), -1
        self._answer: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio when the connection is open."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has the methods, but not the base class

    def data_received(self, data: bytes) -> None:
        """Called by asyncio. Completes the answer once its whole body has arrived."""
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
        """Called by asyncio. Fails the request that waits for an answer."""
        if self._answer and not self._answer.done():
            self._answer.set_exception(ConnectionResetError(f"closed: {exc}"))
        self._transport = None

    @property
    def alive(self) -> bool:
        """Whether the connection can take another request."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Closes the connection."""
        if self._transport:
            self._transport.close()

    async def send(self, request: bytes) -> Answer:
        """Sends one request and returns its answer. Raises ConnectionError."""
        if not self._transport:
            raise ConnectionResetError("closed before the request")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer


class ConnectionPool:
    """Connections to one service: one for each concurrent request."""

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url)  # plain HTTP, with a port
        self._free: list[Connection] = []

    def request(self, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        """The bytes of a POST, which can be sent any number of times."""
        lines = [f"POST {path} HTTP/1.1", f"Host: {self._to.netloc}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join(lines).encode() + END + body

    async def close(self) -> None:
        """Closes the free connections."""
        for connection in self._free:
            connection.close()
        await asyncio.sleep(0)  # asyncio closes their sockets in its next round

    async def send(self, request: bytes) -> Answer:
        """Sends a request on a free connection, or on a new one. Raises OSError."""
        connection = self._free.pop() if self._free else None
        if not connection or not connection.alive:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, self._to.hostname or "", self._to.port or 80)
        answer = await connection.send(request)
        if answer.headers.get("connection", "").lower() != "close":
            self._free.append(connection)
        return answer


def at_once(url: str, body: bytes, count: int, headers: dict[str, str]) -> list[Answer]:
    """Sends `count` predictions at the same moment, each on its own connection; returns their answers. Raises OSError.

    It writes a request in less time than a service needs for it, so they are all there together.
    """

    async def send() -> list[Answer]:
        pool = ConnectionPool(url)
        request = pool.request("/v1/predict", body, {"Content-Type": "image/jpeg"} | headers)
        try:
            return await asyncio.gather(*(pool.send(request) for _ in range(count)))
        finally:
            await pool.close()

    return asyncio.run(send())
