"""Locust's users: photos of all kinds, each answer looked at, the service's stages as entries of their own.

`make load`, or with the web UI: `python -m locust -f loadtests/locustfile.py --host http://127.0.0.1:8000 Open`.
"""

from __future__ import annotations

from locust import FastHttpUser, LoadTestShape, events, task  # gevent must patch the standard library first
from locust.argument_parser import LocustArgumentParser
from locust.clients import ResponseContextManager
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

import json
import random
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar

import gevent
import httpx
from gevent.pool import Pool

from loadtests.clients import STAGES
from loadtests.mix import Photo, mix
from loadtests.shapes import SHAPES, level
from loadtests.slo import Objective
from loadtests.traffic import Object, objects, same

PATH = "/v1/predict"
PATIENCE_S = 60.0
PHOTOS: list[Photo] = []
KNOWN: dict[bytes, list[Object]] = {}  # the right answers, by photo


@events.init_command_line_parser.add_listener
def options(parser: LocustArgumentParser, **_: object) -> None:
    """Ours, on the command line and in the web UI."""
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="smoke", help="how the load rises and falls, see loadtests/shapes.py")
    add("--peak", type=int, default=5, help="Open: photos a second; Closed: clients; at the shape's highest")
    add("--p95-ms", type=float, default=1000.0, help="95 % of the answers must come sooner")
    add("--error-ratio", type=float, default=0.01, help="of the requests may fail or be refused")
    add("--min-requests", type=int, default=20, help="fewer judge nothing: exit code 1")
    add("--photos", type=Path, default=None, help="folder of JPEGs; two that every installation has when not given")
    add("--seed", type=int, default=0, help="of the arrivals")


@events.test_start.add_listener
def learn(environment: Environment, **_: object) -> None:
    """Asks for each photo once, in peace: these are the right answers."""
    if isinstance(environment.runner, MasterRunner):
        return
    wanted: Any = environment.parsed_options
    PHOTOS[:] = mix(wanted.photos)
    random.seed(wanted.seed + getattr(environment.runner, "worker_index", 0))
    try:
        with httpx.Client(base_url=environment.host or "", timeout=PATIENCE_S) as http:
            for photo in {photo.content: photo for photo in PHOTOS}.values():
                answer = http.post(PATH, content=photo.content, headers={"Content-Type": photo.media_type})
                KNOWN[photo.content] = objects(answer.raise_for_status().json())
    except httpx.HTTPError as error:
        print(f"{environment.host} does not say what is right: {error}")
        if environment.runner:
            environment.runner.quit()


@events.quitting.add_listener
def gate(environment: Environment, **_: object) -> None:
    """The exit code: 1 when the objective is broken."""
    if isinstance(environment.runner, WorkerRunner):
        return
    wanted: Any = environment.parsed_options
    entry = environment.stats.get(PATH, "POST")
    objective = Objective(wanted.p95_ms, wanted.error_ratio, wanted.min_requests)
    p95 = entry.get_response_time_percentile(0.95) or 0.0
    breaches = objective.breaches(entry.num_requests, entry.num_failures, p95)
    print("\n".join(f"objective missed: {breach}" for breach in breaches) or f"objective met: p95 {p95:.0f} ms")
    environment.process_exit_code = 1 if breaches else 0


class Photographer(FastHttpUser):
    """What both kinds of workload do."""

    abstract = True
    network_timeout = PATIENCE_S
    connection_timeout = PATIENCE_S

    def ask(self) -> float:
        """One photo; returns for how many seconds the service wants no other."""
        photo = random.choice(PHOTOS)
        headers = {"Content-Type": photo.media_type}
        body: Any = photo.content  # bytes will do, whatever the type says
        with self.client.post(PATH, data=body, headers=headers, catch_response=True) as answer:
            if answer.status_code != HTTPStatus.OK:
                answer.failure(f"{answer.status_code} {answer.error or (answer.text or '')[:200]}")
                return float((answer.headers or {}).get("Retry-After", 1))
            self._judge(answer, KNOWN[photo.content])
            for stage, ms in STAGES.findall(answer.headers.get("Server-Timing", "")):
                # Straight to its entry: they are not requests, and must not count in the total.
                self.environment.stats.get(stage, "stage").log(float(ms), 0)
        return 0.0

    def _judge(self, answer: ResponseContextManager, known: list[Object]) -> None:
        found = objects(json.loads(answer.content or b"{}"))
        if not same(known, found):
            answer.failure("wrong boxes")


class Open(Photographer):
    """An open workload. A user is a stream of one photo a second, whatever becomes of those before; all are Poisson."""

    concurrency = 10_000
    _sent: ClassVar[Pool] = Pool()

    def wait_time(self) -> float:
        """Until the next one."""
        return random.expovariate(1.0)

    @task
    def predict(self) -> None:
        """Does not wait for the answer."""
        self._sent.spawn(self.ask)

    def on_stop(self) -> None:
        """What was sent is awaited, and counts."""
        self._sent.join(PATIENCE_S)


class Closed(Photographer):
    """A closed workload. A user is a client that sends a photo when it has its answer, and waits when it is refused."""

    @task
    def predict(self) -> None:
        """Waits for the answer."""
        gevent.sleep(self.ask())


class Shape(LoadTestShape):
    """One of shapes.SHAPES, of `--peak` users."""

    def tick(self) -> tuple[int, float] | None:
        """Locust asks every second."""
        wanted: Any = self.runner.environment.parsed_options if self.runner else None
        part = level(wanted.shape, self.get_run_time())
        return None if part is None else (max(1, round(part * wanted.peak)), float(wanted.peak))
