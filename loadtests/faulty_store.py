"""A gateway before an S3 on loopback that is slow, cuts answers short, or refuses, as stores may."""

from __future__ import annotations

import http.server
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LARGE = 10_000  # bytes; smaller answers, such as manifests, pass
PASSED = ("range", "authorization", "x-amz-date", "host")


class FaultyStore:
    """What the gateway does; change it at any time. `cuts` and `slow` count the large answers that it still spoils."""

    def __init__(self, target: str) -> None:
        self.target, self.url = target, ""
        self.cuts = 0  # answers of which half arrives
        self.slow = 0  # answers of which a kilobyte arrives every `pause_s`
        self.pause_s = 0.1
        self.status: int | None = None  # the answer to everything


@contextmanager
def before(target: str) -> Iterator[FaultyStore]:
    """Starts a gateway before the store with this URL."""
    faults = FaultyStore(target)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if faults.status:
                self.send_error(faults.status)
                return
            headers = {k: v for k, v in self.headers.items() if k.lower() in PASSED}
            request = urllib.request.Request(target + self.path, headers=headers, method=self.command)  # noqa: S310
            with urllib.request.urlopen(request) as answer:  # noqa: S310
                body = answer.read()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    if name.lower() not in ("connection", "transfer-encoding", "server", "date"):
                        self.send_header(name, value)
                self.end_headers()
            with suppress(ConnectionError):
                self.send(body)

        do_HEAD = do_GET  # noqa: N815 - the base class looks for this name

        def send(self, body: bytes) -> None:
            if faults.cuts and len(body) > LARGE:
                faults.cuts -= 1
                body = body[: len(body) // 2]
                self.close_connection = True
            if faults.slow and len(body) > LARGE:
                faults.slow -= 1
                until = faults.slow
                while body and faults.slow == until:  # until it is changed
                    self.wfile.write(body[:1000])
                    body = body[1000:]
                    time.sleep(faults.pause_s)
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        faults.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield faults
        finally:
            server.shutdown()
