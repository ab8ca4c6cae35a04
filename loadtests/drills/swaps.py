"""`make drill-weights`: swaps weights under constant load, half of them broken, and checks every answer.

Every answer must be 200 and carry the sha256 of weights that were live during the request. Every broken version must be
refused for the right reason. Otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from loadtests import s3_server
from loadtests.drills.weights_versions import Versions
from loadtests.service import Service, config, deploy, detector, free_port, model, running
from serve_app.vision import sample_photos

CLIENTS = 3
TIMEOUT_S = 120


@dataclass
class Answers:
    """The requests: (sent, answered, status, sha256). Times are monotonic seconds; status 0 is no answer."""

    rows: list[tuple[float, float, int, str]] = field(default_factory=list)

    def ask_on(self, url: str, photo: bytes, stop: threading.Event, pause_s: float) -> None:
        """Runs one closed-loop client, with a pause after each answer, until `stop` is set."""
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
            while not stop.wait(pause_s):
                sent = time.monotonic()
                try:
                    answer = http.post("/v1/predict", files={"file": photo})
                    row = (answer.status_code, answer.headers.get("X-Model-Sha256", ""))
                except httpx.TransportError:
                    row = (0, "")
                self.rows.append((sent, time.monotonic(), *row))


@contextmanager
def asking(url: str, pause_s: float = 0.0) -> Iterator[Answers]:
    """Runs CLIENTS clients while the block runs."""
    answers, stop = Answers(), threading.Event()
    typed = url, sample_photos.bus(), stop, pause_s
    clients = [threading.Thread(target=answers.ask_on, args=typed) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield answers
    finally:
        stop.set()
        for client in clients:
            client.join()


@dataclass(frozen=True)
class Outcome:
    """One swap: its kind, the result that was wanted and the one seen, its duration, and the live weights after it."""

    kind: str
    wanted: str
    seen: str
    seconds: float
    began: float
    ended: float
    live: str


REASONS = {
    "truncated": "damaged", "wrong hash": "damaged", "wrong classes": "wrong",
    "NaN": "not_finite", "golden": "golden", "vanished": "missing",
}  # fmt: skip


class Operator:
    """Changes `user_config` and waits until the service reports the result."""

    def __init__(self, service: Service, content: dict[str, Any], live: str) -> None:
        self._service, self._content, self._live = service, content, live

    def swap(self, kind: str, uri: str) -> Outcome:
        """Returns once `uri` is live or refused; after TIMEOUT_S the result is `nothing`."""
        wanted = REASONS.get(kind, "live")
        refused_before = model(self._service)["refused"]  # the service has one replica
        detector(self._content)["user_config"]["weights"] = uri
        began = time.monotonic()
        deploy(self._service, self._content)
        applied = time.monotonic()
        while time.monotonic() < applied + TIMEOUT_S:
            shown = model(self._service)
            if shown["uri"] == uri:
                self._live = shown["sha256"]
                return self._outcome(kind, wanted, "live", began, applied)
            if shown["refused"] != refused_before:
                return self._outcome(kind, wanted, shown["refused"][-1]["reason"], began, applied)
            time.sleep(0.02)
        return self._outcome(kind, wanted, "nothing", began, applied)

    def _outcome(self, kind: str, wanted: str, seen: str, began: float, applied: float) -> Outcome:
        now = time.monotonic()
        return Outcome(kind, wanted, seen, now - applied, began, now, self._live)


def judge(answers: Answers, outcomes: list[Outcome], first: str) -> tuple[int, int]:
    """Returns (failed, mislabelled). An answer may name any weights that were live between its sending and its arrival.

    New weights may be live from the start of their swap, old ones until the service was seen to have replaced them.
    """
    spans = []
    begins, live = 0.0, first
    for outcome in outcomes:
        if outcome.live != live:
            spans.append((begins, outcome.ended, live))
            begins, live = outcome.began, outcome.live
    spans.append((begins, float("inf"), live))
    failed = sum(status != httpx.codes.OK for _, _, status, _ in answers.rows)
    wrong = sum(
        not any(sha == known and sent <= until and since <= done for since, until, known in spans)
        for sent, done, status, sha in answers.rows
        if status == httpx.codes.OK
    )
    return failed, wrong


def drill(swaps: int) -> bool:
    """Prints the table; true when no answer failed or was mislabelled, and every swap ended as wanted."""
    with tempfile.TemporaryDirectory() as name, s3_server.bucket() as bucket:
        folder = Path(name)
        versions = Versions(bucket, folder)
        first = versions.good()
        args = {"weights": first.uri, "s3_endpoint_url": bucket.endpoint, "weights_cache": str(folder / "cache")}
        content = config(free_port(), **args)
        with running(content) as service:
            operator, outcomes, broken = Operator(service, content, first.sha256), [], itertools.cycle(REASONS)
            before = previous = first.uri
            with asking(service.url) as answers:
                for n in range(swaps):
                    kind = next(broken) if n % 2 else ("back" if n % 8 == 6 else "new")
                    if kind == "new":
                        previous, before = before, versions.good().uri
                    elif kind == "back":
                        previous, before = before, previous
                    uri = versions.broken(kind) if kind in REASONS else before
                    outcomes.append(operator.swap(kind, uri))
                    seen = outcomes[-1]
                    print(f"{n + 1:3d}  {kind:14s} wanted {seen.wanted:11s} saw {seen.seen:11s} {seen.seconds:6.2f} s")
            failed, wrong = judge(answers, outcomes, first.sha256)
        print(f"{len(answers.rows)} answers, {failed} failed, {wrong} with weights that were not live")
        return bool(answers.rows) and not failed and not wrong and all(o.wanted == o.seen for o in outcomes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=20)
    sys.exit(not drill(parser.parse_args().swaps))
