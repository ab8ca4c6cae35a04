"""One line for each request: what came of it, by which weights, and how long each stage took.

It goes into the replica's log file alone (`logging_config` makes it JSON). Serve adds the request id; the trace id is
there when the request is traced. Probes and pages are not logged.
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
from serve_app.records import Finished, slowest_ms
from serve_app.settings import PredictOptions

logger = logging.getLogger("ray.serve")
ASKED = ("/v1/", "/v2/models/", "/invocations")
FACTS, DETAILED = "recognition.facts", "recognition.detailed"  # in the ASGI scope
LONGEST_PATH = 500  # characters of it that are logged
SILENT = 499  # the status by which proxies tell that the client has gone


class RequestLog:
    """Middleware around the application. `sample` is the share of requests whose line tells details too."""

    def __init__(self, app: ASGIApp, sample: float) -> None:
        self.app, self._sample = app, sample

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or not scope["path"].startswith(ASKED):
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), SILENT
        facts: dict[str, Any] = {"code": "ok"}
        scope[FACTS] = facts
        scope[DETAILED] = self._chosen(HTTPConnection(scope).headers.get("x-request-id", ""))

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_see)
        except Exception:  # answered, and told with its traceback, further out: see problems.py
            status, facts["code"] = AppError.status, AppError.code
            raise
        finally:
            path = scope["raw_path"][:LONGEST_PATH].decode("ascii", "replace")  # still encoded: a line stays one line
            if status == SILENT:
                facts["code"] = "cancelled"
            facts |= {"method": scope["method"], "path": path, "status": status, "trace_id": tracing.trace_id()}
            facts["total_ms"] = round((time.perf_counter() - began) * 1000, 2)
            # Not on stderr, which Ray carries to its drivers.
            logger.info(
                "%s %s %d %s", scope["method"], path, status, facts["code"], extra=facts | {"log_to_stderr": False}
            )

    def _chosen(self, request_id: str) -> bool:
        """By the id, so that every replica and every try choose alike."""
        return zlib.crc32(request_id.encode()) < self._sample * 2**32


def tell(request: HTTPConnection, **facts: object) -> None:
    """Adds to the request's line."""
    request.scope.get(FACTS, {}).update(facts)


def tell_outcome(request: HTTPConnection, options: PredictOptions, done: list[Finished | AppError]) -> None:
    """Adds what came of its images: the slowest one's time in each stage, in milliseconds."""
    finished = [one for one in done if isinstance(one, Finished)]
    slowest = {f"{stage}_ms": round(ms, 2) for stage, ms in slowest_ms(finished).items()}
    weights = finished[0].weights
    model = {"model": weights.name, "model_version": weights.version, "model_sha256": weights.sha256}
    count = {
        "images": len(done),
        "failed": len(done) - len(finished),
        "batch_size": max(f.batch_size for f in finished),
    }
    tell(request, **slowest, **model, **count, detections=sum(len(f.found.class_id) for f in finished))
    if request.scope.get(DETAILED):
        tell(request, options=options.model_dump(mode="json"), details=[detail(one) for one in done])


def detail(one: Finished | AppError) -> dict[str, Any]:
    """Of one image, for a sampled request."""
    if isinstance(one, AppError):
        return {"code": one.code}
    names = one.weights.class_names
    return {"shape": one.shape, "found": Counter(names[k] for k in one.found.class_id.tolist())}
