"""What the measurements conclude from their numbers."""

from __future__ import annotations

import asyncio
import http.server

import pytest
import uvloop

from loadtests.benchmarks import overhead
from loadtests.benchmarks.tune import best
from loadtests.clients import summary
from loadtests.drills.endurance import slope
from loadtests.raw_http import Answer, ConnectionPool
from serve_app.settings import AppSettings
from serve_app.weights import identity, loader
from tests.conftest import http_server


def test_the_smallest_batch_that_is_as_fast_wins() -> None:
    assert best({(1, 0.0): 39.0, (2, 0.0): 40.0, (8, 0.005): 40.1}) == (1, 0.0)
    assert best({(1, 0.0): 30.0, (2, 0.0): 40.0, (8, 0.005): 40.1}) == (2, 0.0)
    assert best({(8, 0.005): 40.0, (8, 0.0): 39.9}) == (8, 0.0)


def test_a_leak_is_a_slope_and_growth_at_the_start_is_none() -> None:
    flat = [(t, min(t, 100.0)) for t in range(0, 1000, 10)]
    assert slope(flat) == pytest.approx((100, 100, 0))
    leak = [(t, 50 + t / 3600 * 20) for t in range(0, 1000, 10)]
    assert slope(leak)[2] == pytest.approx(20)


def test_a_measurement_is_told_per_image() -> None:
    measured = summary([0.1] * 99 + [1.0], 10, 2, {"replica": 4.0, "idle": 0.001})
    assert (measured.rate, measured.errors, measured.cpu_ms) == (10, 2, {"replica": 40.0})
    assert measured.p50 == pytest.approx(100)
    assert measured.p99 > 900


def test_an_instant_engine_stands_in_for_any_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled one, whose manifest has class names, too."""
    monkeypatch.setattr(loader, "build", loader.build)
    overhead.without_network()
    pinned = identity.pin_file(str(identity.BUNDLED))
    assert pinned.manifest
    content = identity.BUNDLED.read_bytes()
    loaded = loader.load(
        pinned.uri, lambda _: (pinned, content), settings=AppSettings(), size=pinned.image_size, task="detect", device="cpu",
        batch_sizes={1},
    )  # fmt: skip
    assert loaded.engine.class_names == pinned.manifest.class_names


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers in two writes, closes after /close, and breaks off at /lost."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/lost":
            self.close_connection = True
            return
        self.send_response(503 if self.path == "/close" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Port", str(self.client_address[1]))
        if self.path == "/close":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_the_cheap_client_keeps_its_connections_and_tells_what_was_lost() -> None:
    with http_server(Echo) as url:
        wire = ConnectionPool(url)

        async def ask(path: str) -> Answer:
            return await wire.send(wire.request(path, b"photo" * 100_000, {"Content-Type": "image/jpeg"}))

        async def run() -> None:
            first, again = await ask("/"), await ask("/")
            assert first.body == b"photo" * 100_000
            assert first.headers["x-port"] == again.headers["x-port"], "the same connection"
            both = await asyncio.gather(ask("/"), ask("/"))
            assert len({one.headers["x-port"] for one in both}) == 2, "one request at a time on each"
            assert (await ask("/close")).status == 503
            assert (await ask("/")).status == 200, "on a new one"
            with pytest.raises(ConnectionError):
                await ask("/lost")

        uvloop.run(run())
