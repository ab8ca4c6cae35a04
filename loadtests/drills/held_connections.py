"""Clients that hold connections: they say nothing, half a request, or read their answer byte by byte."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

from serve_app.vision import sample_photos

HEAD = "POST /v1/predict HTTP/1.1\r\nHost: service\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"


def say_nothing(url: str, connections: int, seconds: float) -> None:
    """Holds connections for `seconds`: the first half of them sends nothing, the others a request without its end."""
    with held(url, connections) as sockets:
        for one in sockets[connections // 2 :]:
            one.sendall((HEAD % 100_000).encode() + b"half")
        time.sleep(seconds)


def read_slowly(url: str, connections: int, seconds: float) -> None:
    """Asks for the drawn photo, 0.3 MB, on each connection, and reads a kilobyte a second of the answer."""
    photo = sample_photos.bus()
    head = HEAD.replace("/v1/predict", "/v1/predict?format=image") % len(photo)
    with held(url, connections) as sockets:
        for one in sockets:
            one.sendall(head.encode() + photo)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for one in sockets:
                with suppress(BlockingIOError):
                    one.recv(1000, socket.MSG_DONTWAIT)
            time.sleep(1)


@contextmanager
def held(url: str, connections: int) -> Iterator[list[socket.socket]]:
    """Connections to a service, closed at the end. Their buffers are small, so an answer does not fit."""
    at = urlsplit(url)
    with ExitStack() as stack:
        sockets = []
        for _ in range(connections):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect((at.hostname or "", at.port or 80))
            sockets.append(one)
        yield sockets
