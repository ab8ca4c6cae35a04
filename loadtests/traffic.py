"""Background traffic with known right answers. It shows what clients lose while the service is changed or broken."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any

import aiohttp
import uvloop

from loadtests.raw_http import Answer, ConnectionPool
from serve_app.vision.boxes import overlap

LATE_S = 35.0  # the service's own limit is 30 s
SURE = 0.6  # every version of the weights must find the objects above this confidence
BACKED_OFF = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
Object = tuple[str, float, tuple[float, ...]]


@dataclass(frozen=True)
class Row:
    """One request: when it was sent and done (monotonic seconds), its verdict, and the sha256 of the weights."""

    sent: float
    done: float
    verdict: str  # answered, refused, lost, late or wrong
    sha256: str
    detail: str


@dataclass
class Traffic:
    """Sends known photos from closed-loop clients, on kept and on new connections, and from an open loop."""

    url: str
    photos: list[bytes]
    headers: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    _known: list[list[Object]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    async def learn(self, http: aiohttp.ClientSession) -> None:
        """Asks for each photo once, without other load. These are the right answers. Raises aiohttp.ClientError."""
        for photo in self.photos:
            async with http.post(f"{self.url}/v1/predict", data=photo) as answer:
                answer.raise_for_status()
                self._known.append(objects(await answer.json()))

    async def ask(self, http: aiohttp.ClientSession, n: int) -> Row:
        """Sends one request and keeps its row. A connection error is the verdict `lost`, not an exception."""

        async def answer(which: int) -> Answer:
            async with http.post(f"{self.url}/v1/predict", data=self.photos[which]) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Answer(HTTPStatus(response.status), headers, await response.read())

        return await self._row(answer, n)

    async def _row(self, ask: Callable[[int], Awaitable[Answer]], n: int) -> Row:
        sent, which = time.monotonic(), n % len(self.photos)
        try:
            answer = await ask(which)
            verdict, detail = self._judge(which, answer)
            sha256 = answer.headers.get("x-model-sha256", "")
        except (aiohttp.ClientError, OSError) as error:  # includes TimeoutError
            verdict, detail, sha256 = "lost", f"{type(error).__name__}: {error}", ""
        done = time.monotonic()
        row = Row(sent, done, "late" if done - sent > LATE_S else verdict, sha256, detail)
        self.rows.append(row)
        return row

    def _judge(self, which: int, answer: Answer) -> tuple[str, str]:
        if answer.status == HTTPStatus.OK:
            found = objects(json.loads(answer.body))
            return ("answered", "") if same(self._known[which], found) else ("wrong", f"photo {which}: {found}")
        if answer.status in BACKED_OFF and "retry-after" in answer.headers:
            return "refused", str(answer.status)
        late = answer.status == HTTPStatus.GATEWAY_TIMEOUT
        return "late" if late else "lost", f"{answer.status} {answer.body[:200]!r}"

    async def closed(self, http: aiohttp.ClientSession, n: int, pause_s: float) -> None:
        """A closed-loop client. It pauses after each request, for at least 0.2 s after a refused or lost one."""
        while not self._stop.is_set():
            row = await self.ask(http, n)
            n += 1
            await asyncio.sleep(max(pause_s, 0.2) if row.verdict in ("refused", "lost") else pause_s)

    async def open(
        self, ask: Callable[[int], Coroutine[Any, Any, Row]], rate: float, until: Callable[[], bool]
    ) -> None:
        """An open loop: `rate` requests a second, whether or not earlier ones are answered, until `until()` is true."""
        began, n = time.monotonic(), 0
        async with asyncio.TaskGroup() as sent:
            while not until():
                sent.create_task(ask(n))
                n += 1
                await asyncio.sleep(max(0.0, began + n / rate - time.monotonic()))

    async def _run(self, ready: threading.Event, closed: int, rate: float, pause_s: float) -> None:
        async with self.session() as kept, self.session(new=True) as new:
            await self.learn(kept)
            await self.ask(kept, 0)
            ready.set()
            clients = [self.closed(new if n % 2 else kept, n, pause_s) for n in range(closed)]
            await asyncio.gather(*clients, self.open(partial(self.ask, kept), rate, self._stop.is_set))

    def session(self, new: bool = False) -> aiohttp.ClientSession:
        """A session that keeps its connections, or opens a new one for each request."""
        headers = {"Content-Type": "image/jpeg"} | self.headers
        connector = aiohttp.TCPConnector(limit=0, force_close=new)
        return aiohttp.ClientSession(connector=connector, headers=headers, timeout=aiohttp.ClientTimeout(2 * LATE_S))

    @contextmanager
    def flowing(self, closed: int = 4, rate: float = 4.0, pause_s: float = 0.0) -> Iterator[None]:
        """Sends traffic while the block runs: `closed` clients with pauses, and `rate` requests/s.

        Raises ConnectionError.
        """
        ready = threading.Event()
        with in_thread(self._run(ready, closed, rate, pause_s)) as thread:
            while not ready.wait(0.1):
                if not thread.is_alive():
                    raise ConnectionError(f"{self.url} does not answer")
            try:
                yield
            finally:
                self._stop.set()

    def burst(self, rate: float, seconds: float) -> list[Row]:
        """Sends a separate open loop on its own connections, and returns its rows. They are not added to `rows`."""
        other = Traffic(self.url, self.photos, self.headers, _known=self._known)
        pool = ConnectionPool(self.url)
        headers = {"Content-Type": "image/jpeg"} | self.headers
        requests = [pool.request("/v1/predict", photo, headers) for photo in self.photos]

        async def run() -> None:
            end = time.monotonic() + seconds
            await other.open(
                partial(other._row, lambda which: pool.send(requests[which])), rate, lambda: time.monotonic() >= end
            )

        uvloop.run(run())
        return other.rows

    def between(self, began: float, ended: float) -> list[Row]:
        """The requests in flight at any time between two moments, in monotonic seconds."""
        return [row for row in self.rows if row.done >= began and row.sent <= ended]


@contextmanager
def in_thread(work: Coroutine[Any, Any, None]) -> Iterator[threading.Thread]:
    """Runs a coroutine in a thread beside the block, and waits for its end."""
    thread = threading.Thread(target=asyncio.run, args=(work,))
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


def objects(answer: dict[str, Any]) -> list[Object]:
    """The objects in an answer for one image: name, confidence, and x1, y1, x2, y2."""
    (image,) = answer["images"]
    rows = image["results"]
    return [(r["name"], r["confidence"], tuple(r["box"][k] for k in ("x1", "y1", "x2", "y2"))) for r in rows]


def same(wanted: list[Object], found: list[Object]) -> bool:
    """Whether `found` has each sure object (IoU of at least 0.8) and no other one with a confidence of 0.9 or more."""
    sure = [w for w in wanted if w[1] >= SURE]
    there = all(any(f[0] == w[0] and overlap(f[2], w[2]) >= 0.8 for f in found) for w in sure)
    extra = Counter(f[0] for f in found if f[1] >= 0.9) - Counter(w[0] for w in wanted if w[1] >= 0.5)
    return there and not extra


def tail(rows: list[Row]) -> float:
    """The 95th percentile of the latency, in seconds."""
    return statistics.quantiles([row.done - row.sent for row in rows] or [0.0] * 2, n=20)[-1]


def stall(rows: list[Row], began: float, ended: float) -> float:
    """The longest time between two moments without an answer, in seconds."""
    times = sorted(row.done for row in rows if row.verdict == "answered" and began <= row.done <= ended)
    return max(b - a for a, b in itertools.pairwise([began, *times, ended]))
