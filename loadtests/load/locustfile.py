"""Locust's users: send the photo mix, check every answer, and report the service's stages as separate entries.

`make load`, or with the web UI: `python -m locust -f loadtests/load/locustfile.py --host http://127.0.0.1:8000 Open`.
"""

from __future__ import annotations

from locust import FastHttpUser, LoadTestShape, events, task  # gevent must patch the standard library first
from locust.argument_parser import LocustArgumentParser
from locust.clients import ResponseContextManager
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

import json
import os
import random
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar

import gevent
import httpx
from gevent.pool import Pool

from loadtests.clients import STAGES
from loadtests.load.shapes import SHAPES, level
from loadtests.load.slo import Objective
from loadtests.photo_mix import Photo, photo_mix
from loadtests.traffic import Object, objects, same

PATH = "/v1/predict"
PATIENCE_S = 60.0
KEY = {"Authorization": f"Bearer {key}"} if (key := os.environ.get("API_KEY")) else {}  # of a service that asks for one
PHOTOS: list[Photo] = []
KNOWN: dict[bytes, list[Object]] = {}  # right answers by photo


@events.init_command_line_parser.add_listener
def options(parser: LocustArgumentParser, **_: object) -> None:
    """Adds these options to Locust's command line and web UI."""
    add = parser.add_argument
    add(
        "--shape",
        choices=list(SHAPES),
        default="smoke",
        help="how the load rises and falls, see shapes.py",
    )
    add("--peak", type=int, default=5, help="load at the shape's peak: photos a second (Open), clients (Closed)")
    add("--p95-ms", type=float, default=1000.0, help="largest 95th percentile of the latency, in ms")
    add("--error-ratio", type=float, default=0.01, help="largest share of requests that fail or are refused")
    add("--min-requests", type=int, default=20, help="with fewer requests the objective is missed")
    add("--photos", type=Path, default=None, help="folder of JPEGs; the two sample photos when not given")
    add("--seed", type=int, default=0, help="seed of the arrivals")


@events.test_start.add_listener
def learn(environment: Environment, **_: object) -> None:
    """Asks for each photo once, before the load. These are the right answers."""
    if isinstance(environment.runner, MasterRunner):
        return
    wanted: Any = environment.parsed_options
    PHOTOS[:] = photo_mix(wanted.photos)
    random.seed(wanted.seed + getattr(environment.runner, "worker_index", 0))
    try:
        with httpx.Client(base_url=environment.host or "", timeout=PATIENCE_S) as http:
            for photo in {photo.content: photo for photo in PHOTOS}.values():
                answer = http.post(PATH, content=photo.content, headers=KEY | {"Content-Type": photo.media_type})
                KNOWN[photo.content] = objects(answer.raise_for_status().json())
    except httpx.HTTPError as error:
        print(f"cannot learn the right answers from {environment.host}: {error}")
        if environment.runner:
            environment.runner.quit()
    if environment.shape_class:
        environment.shape_class.reset_time()  # the load begins now; learning may take longer than a shape


@events.quitting.add_listener
def gate(environment: Environment, **_: object) -> None:
    """Sets the exit code: 1 when the objective is missed."""
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
    """The common part of both workloads."""

    abstract = True
    network_timeout = PATIENCE_S
    connection_timeout = PATIENCE_S

    def ask(self) -> float:
        """Sends one photo. Returns the seconds to wait before the next one: Retry-After when it was refused, else 0."""
        photo = random.choice(PHOTOS)
        headers = KEY | {"Content-Type": photo.media_type}
        body: Any = photo.content  # Locust takes bytes too, although its type does not say so
        with self.client.post(PATH, data=body, headers=headers, catch_response=True) as answer:
            if answer.status_code != HTTPStatus.OK:
                answer.failure(f"{answer.status_code} {answer.error or (answer.text or '')[:200]}")
                return float((answer.headers or {}).get("Retry-After", 1))
            self._judge(answer, KNOWN[photo.content])
            for stage, ms in STAGES.findall(answer.headers.get("Server-Timing", "")):
                # Logged directly: stages are not requests, and must not count in the total.
                self.environment.stats.get(stage, "stage").log(float(ms), 0)
        return 0.0

    def _judge(self, answer: ResponseContextManager, known: list[Object]) -> None:
        found = objects(json.loads(answer.content or b"{}"))
        if not same(known, found):
            answer.failure("wrong boxes")


class Open(Photographer):
    """An open workload: each user is a Poisson stream of one photo a second, which does not wait for answers."""

    concurrency = 10_000
    _sent: ClassVar[Pool] = Pool()

    def wait_time(self) -> float:
        """Seconds until the next photo."""
        return random.expovariate(1.0)

    @task
    def predict(self) -> None:
        """Sends a photo without waiting for its answer."""
        self._sent.spawn(self.ask)

    def on_stop(self) -> None:
        """Waits up to PATIENCE_S for the answers to sent photos; they count too."""
        self._sent.join(PATIENCE_S)


class Closed(Photographer):
    """A closed workload: each user sends a photo after the answer to the one before, and waits when it is refused."""

    @task
    def predict(self) -> None:
        """Sends a photo and waits for its answer."""
        gevent.sleep(self.ask())


class Shape(LoadTestShape):
    """A shape of shapes.SHAPES with `--peak` users at its peak."""

    def tick(self) -> tuple[int, float] | None:
        """Returns (users, spawn rate); None ends the test. Locust calls it every second."""
        wanted: Any = self.runner.environment.parsed_options if self.runner else None
        part = level(wanted.shape, self.get_run_time())
        return None if part is None else (max(1, round(part * wanted.peak)), float(wanted.peak))
