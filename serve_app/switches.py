"""Ray's own switches, as environment variables of every process of the service. Set before Ray is imported.

Dockerfile and manifests set the same ones, less the ports and paths, which on a machine of its own may be Ray's.
"""

from __future__ import annotations

import random
import socket
import sys
from http import HTTPStatus
from pathlib import Path

from serve_app.schemas import Problem
from serve_app.settings import MAX_PREDICTIONS, REQUEST_ID


def problem(status: int, code: str) -> str:
    """What HAProxy answers by itself to what never becomes a request, in the shape of all errors."""
    title = HTTPStatus(status).phrase
    return Problem(title=title, status=status, code=code, detail=title, request_id="").model_dump_json()


PORTS = (  # that Ray would take at fixed numbers, all of them shared with whoever else takes them
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",  # Serve's own proxy, where HAProxy turns to while no replica is up
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
# Largest request that outlives its replica. With 4 MB, for photos of phones, HAProxy takes 2 ms a request instead of
# 0.6, and under overload a refusal 2.6 s instead of 0.05 (loadtests/RESULTS.md).
REPLAYED_BYTES = 1_000_000
BLOCK = 20  # ports of one service: those four, and its ingress replicas
# What Ray's template of HAProxy's configuration has no variable for. Ray copies the text of BALANCE_ALGORITHM to the
# end of the section `defaults`, so these lines stand below it. HAProxy can only send again what it had whole before.
# No replica has more than 256 requests at a time, a few of which are no predictions (REFUSALS).
DEFAULTS = f"""\
    option http-buffer-request
    timeout http-request 20s
    default-server maxconn 256
    timeout queue 500ms
    http-error status 408 content-type application/problem+json string '{problem(408, "upload_too_slow")}'
    http-error status 503 content-type application/problem+json string '{problem(503, "overloaded")}' hdr Retry-After 1
    http-error status 502 content-type application/problem+json string '{problem(502, "not_ready")}' hdr Retry-After 1
    http-error status 504 content-type application/problem+json string '{problem(504, "timeout")}'
"""
# Nor is there a variable for the section of the replicas, but the text of DOWNINTER is copied into a line of it. There
# HAProxy refuses a prediction when MAX_PREDICTIONS others of its own are in work for each replica, for 0.4 ms of CPU
# instead of 2.2. What is left to a replica (proxy.py): bodies that are longer than HAProxy keeps or have no
# Content-Length, and what the HAProxies of several nodes let through together.
REFUSAL = problem(503, "overloaded").replace('"request_id":""', '"request_id":"%[req.hdr(x-request-id)]"')
REFUSALS = f"""\
    http-request del-header x-request-id unless {{ req.hdr(x-request-id) -m reg ^{REQUEST_ID}$ }}
    http-request set-var(txn.running) be_conn
    http-request return status 503 content-type application/problem+json hdr Retry-After 1 \
hdr X-Request-Id %[req.hdr(x-request-id)] lf-string '{REFUSAL}' if METH_POST {{ req.fhdr(content-length) -m int lt \
{REPLAYED_BYTES - 20_000} }} {{ nbsrv,mul({MAX_PREDICTIONS}),sub(txn.running) lt 0 }}
"""
SWITCHES = {
    # HAProxy in front of the replicas instead of Serve's proxy in Python: 0.7 ms of CPU a request instead of 7 ms.
    # Ray brings it for Linux only.
    "RAY_SERVE_ENABLE_HA_PROXY": str(int(sys.platform == "linux")),
    # In the replica's HTTP server, before Serve looks at a request.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.proxy:middlewares",
    # Ray starts workers at niceness 15, behind everything else on the machine.
    "RAY_worker_niceness": "0",
    # glibc's own limit is 8 arenas a core, each of which keeps what a photo needed once: with 2 a replica has found its
    # size after 3,000 photos, 62 MB lower, instead of growing for an hour; the rate is the same.
    "MALLOC_ARENA_MAX": "2",
    # 4 threads are HAProxy's default; at 1,000 requests/s it needs half of one.
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # A request whose replica died is sent to another: looking twice at a photo harms nobody. With no other, the third
    # failure turns to Serve's own proxy, which waits for one. No more than five, so that a photo which kills what
    # decodes it kills no more either.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response response-timeout",
    "RAY_SERVE_HAPROXY_RETRIES": "5",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(REPLAYED_BYTES),
    "RAY_SERVE_HAPROXY_MAXCONN": "1024",  # each may fill its buffer: 1 GB at most
    "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "leastconn\n" + DEFAULTS,
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_DOWNINTER": f"250ms\n{REFUSALS}    default-server",  # 250 ms is the default
    # A replica whose engine hangs cannot end what it began.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # Three failures in a row, by default each after 10 s, until a front that died is replaced.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # A replica that hangs answers nothing at all; the application's own limit, 30 s, comes first.
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "40",
    # Between Ray's own 10 and 60 s a percentile is made up: 50 s were shown for answers that took 12.
    "RAY_SERVE_REQUEST_LATENCY_BUCKETS_MS": "10,20,30,50,70,100,150,200,300,500,1000,2000,3000,5000,10000,20000,40000",
    "OTEL_SERVICE_NAME": "recognition",  # OpenTelemetry's, in every trace
}


def local(temp: Path) -> dict[str, str]:
    """SWITCHES, with HAProxy's files below `temp` and its own ports free ones, so that services do not meet."""
    files = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock", "METRICS_SOCKET_PATH": "metrics.sock"}
    files |= {"SERVER_STATE_BASE": "", "SERVER_STATE_FILE": "server-state"}
    paths = {f"RAY_SERVE_HAPROXY_{name}": str(temp / "haproxy" / file) for name, file in files.items()}
    # A replica that stops waits 30 s for the HAProxies of other nodes to forget it; the only one here is told at once.
    own = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2"}
    # Most of these are shared (SO_REUSEPORT): two services that took the same would answer each other's requests.
    first = free_block()
    own["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] = str(first)
    own["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] = str(first + BLOCK - len(PORTS) - 1)
    own |= {name: str(first + BLOCK - n) for n, name in enumerate(PORTS, 1)}
    return SWITCHES | paths | own


def free_block() -> int:
    """The first of BLOCK TCP ports of 30000-31000 that nothing listens on.

    Ray expects its replicas there, and no connection is given one of them: the system's own begin at 32768.
    """
    blocks = list(range(30000, 31000, BLOCK))
    random.shuffle(blocks)
    for first in blocks:
        if all(not listening(port) for port in range(first, first + BLOCK)):
            return first
    raise OSError("no free ports between 30000 and 31000")


def listening(port: int) -> bool:
    """Whether a connection to this port of 127.0.0.1 is accepted."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
