"""The request log: one line for each request, with its outcome, the weights, and the time in each stage.

The line goes only to the replica's log file, as JSON (`logging_config`). Serve adds the request id. The trace id is
empty unless the request is traced. Probes and pages are not logged.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections import Counter
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app import tracing
from serve_app.errors import AppError
from serve_app.graph.payloads import Finished, slowest_ms
from serve_app.settings import PredictOptions
from serve_app.vision.tasks.by_name import TASKS

logger = logging.getLogger("ray.serve")
LOGGED_PATHS = ("/v1/", "/v2/models/", "/invocations")
FACTS, DETAILED = "recognition.facts", "recognition.detailed"  # keys in the ASGI scope
LONGEST_PATH = 500  # characters of a path that are logged
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that left before its response


class RequestLog:
    """Middleware that writes the line. `sample` is the share of requests, 0 to 1, whose line also has details."""

    def __init__(self, app: ASGIApp, sample: float) -> None:
        self.app, self._sample = app, sample

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http" or not scope["path"].startswith(LOGGED_PATHS):
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), CLIENT_CLOSED_REQUEST
        facts: dict[str, Any] = {"code": "ok"}
        scope[FACTS] = facts
        scope[DETAILED] = self._sampled(HTTPConnection(scope).headers.get("x-request-id", ""))

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_see)
        finally:
            # The raw path is percent-encoded, so it cannot break the line in two.
            path = scope["raw_path"][:LONGEST_PATH].decode("ascii", "replace")
            if status == CLIENT_CLOSED_REQUEST:
                facts["code"] = "cancelled"
            facts |= {"method": scope["method"], "path": path, "status": status, "trace_id": tracing.trace_id()}
            facts["total_ms"] = round((time.perf_counter() - began) * 1000, 2)
            # Not to stderr, which Ray forwards to its drivers.
            logger.info(
                "%s %s %d %s", scope["method"], path, status, facts["code"], extra=facts | {"log_to_stderr": False}
            )

    def _sampled(self, request_id: str) -> bool:
        """Decides by the request id, so that all replicas and retries decide the same."""
        return zlib.crc32(request_id.encode()) < self._sample * 2**32


def log_facts(request: HTTPConnection, **facts: object) -> None:
    """Adds fields to the request's line."""
    request.scope.get(FACTS, {}).update(facts)


def log_outcome(request: HTTPConnection, options: PredictOptions, done: list[Finished | AppError]) -> None:
    """Adds the outcome: the slowest image's milliseconds in each stage, the weights, and counts. Needs one success."""
    finished = [one for one in done if isinstance(one, Finished)]
    slowest = {f"{stage}_ms": round(ms, 2) for stage, ms in slowest_ms(finished).items()}
    weights = finished[0].weights
    model = {"model": weights.name, "model_version": weights.version, "model_sha256": weights.sha256}
    count = {
        "images": len(done),
        "failed": len(done) - len(finished),
        "batch_size": max(f.batch_size for f in finished),
    }
    if options.tile:
        count["tiles"] = sum(f.tiles.count for f in finished if f.tiles)
    log_facts(request, **slowest, **model, **count, detections=sum(len(f.found) for f in finished))
    if request.scope.get(DETAILED):
        log_facts(request, options=options.model_dump(mode="json"), details=[detail(one) for one in done])


def detail(one: Finished | AppError) -> dict[str, Any]:
    """The details of one image in a sampled request: its error's code, or its shape and objects by class name."""
    if isinstance(one, AppError):
        return {"code": one.code}
    names, counted = one.weights.class_names, TASKS[one.weights.task].counted(one.found)
    return {"shape": one.shape, "found": Counter(names[k] for k in counted.tolist())}
