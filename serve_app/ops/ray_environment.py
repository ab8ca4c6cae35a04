"""Ray's environment variables, the same for every process of the service. Set them before importing Ray.

The Kubernetes manifests use VARIABLES, and BATCH for batches. `python -m serve_app serve` uses `local`, which adds
ports and paths, so several services can run on one machine.
"""

from __future__ import annotations

import atexit
import random
import socket
import sys
from http import HTTPStatus
from pathlib import Path

from serve_app.http.schemas import OPEN_TO_PAGES, Problem
from serve_app.ops.service_folder import TOKEN
from serve_app.settings import MAX_PREDICTIONS, REQUEST_ID


def problem(status: int, code: str) -> str:
    """The JSON body of an error that HAProxy itself answers. It has the shape of all other errors (`Problem`)."""
    title = HTTPStatus(status).phrase
    return Problem(title=title, status=status, code=code, detail=title, request_id="").model_dump_json()


# The headers of these errors, in HAProxy's language.
HEADERS = "".join(f" hdr {name} '{value}'" for name, value in OPEN_TO_PAGES.items())
AGAIN = f" hdr Retry-After 1{HEADERS}"
# Ports that Ray opens at fixed numbers and shares (SO_REUSEPORT) with any other process that opens them.
PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",  # Serve's own proxy, which HAProxy uses while no replica is up
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
# Largest request that HAProxy can retry when its replica dies. With 4 MB, for phone photos, HAProxy takes 2 ms for a
# request instead of 0.6 ms, and a refusal under overload takes 2.6 s instead of 0.05 s (loadtests/RESULTS.md).
REPLAYED_BYTES = 1_000_000
BLOCK = 20  # ports of one service: the four of PORTS, the rest for its ingress replicas
# HAProxy settings for which Ray's configuration template has no variable. Ray copies the value of BALANCE_ALGORITHM to
# the end of the section `defaults`, so these lines follow it there. `http-buffer-request`: HAProxy can only retry a
# request that it has received completely. `maxconn`: a replica gets at most 256 requests at a time; REFUSALS limits the
# predictions among them. `pool-max-conn`: a dying replica closes its connections one by one. A request may be sent on
# one after the other and fail each time; with two idle ones at most, it has retries left for another server.
DEFAULTS = f"""\
    option http-buffer-request
    timeout http-request 20s
    default-server maxconn 256 pool-max-conn 2
    timeout queue 500ms
    http-error status 408 content-type application/problem+json string '{problem(408, "upload_too_slow")}'{HEADERS}
    http-error status 503 content-type application/problem+json string '{problem(503, "overloaded")}'{AGAIN}
    http-error status 502 content-type application/problem+json string '{problem(502, "not_ready")}'{AGAIN}
    http-error status 504 content-type application/problem+json string '{problem(504, "timeout")}'{HEADERS}
"""
# The template has no variable for the section of the replicas either, but Ray copies the value of DOWNINTER into one of
# its lines. These lines make HAProxy refuse a prediction when it has MAX_PREDICTIONS others in work for each replica. A
# refusal by HAProxy costs 0.4 ms of CPU, one by a replica 2.2 ms. Replicas (http/proxy_middleware.py) still limit what
# HAProxy lets through: bodies that do not fit into its buffer or have no Content-Length, and predictions that come
# through HAProxy on several nodes.
REFUSAL = problem(503, "overloaded").replace('"request_id":""', '"request_id":"%[req.hdr(x-request-id)]"')
REFUSALS = f"""\
    http-request del-header x-request-id unless {{ req.hdr(x-request-id) -m reg ^{REQUEST_ID}$ }}
    http-request set-var(txn.running) be_conn
    http-request return status 503 content-type application/problem+json{AGAIN} \
hdr X-Request-Id %[req.hdr(x-request-id)] lf-string '{REFUSAL}' if METH_POST {{ req.fhdr(content-length) -m int lt \
{REPLAYED_BYTES - 20_000} }} {{ nbsrv,mul({MAX_PREDICTIONS}),sub(txn.running) lt 0 }}
"""
VARIABLES = {
    # HAProxy instead of Serve's Python proxy in front of the replicas: 0.7 ms of CPU a request instead of 7 ms. Ray
    # includes HAProxy for Linux only.
    "RAY_SERVE_ENABLE_HA_PROXY": str(int(sys.platform == "linux")),
    # Lets HAProxy outlive its manager (haproxy_keeper.py). This is its path in the image.
    "RAY_SERVE_HAPROXY_BINARY_PATH": "/opt/venv/bin/haproxy-keeper",
    # Runs in the HTTP server of each replica, before Serve handles a request.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.http.proxy_middleware:middlewares",
    # Ray's default niceness for workers is 15, which puts them behind everything else on the machine.
    "RAY_worker_niceness": "0",
    # glibc's default limit is 8 arenas a core, and each arena keeps the most memory that a photo ever needed. With 2, a
    # replica's memory stops growing after 3,000 photos instead of an hour, and is 62 MB lower, at the same rate.
    "MALLOC_ARENA_MAX": "2",
    # The default is 4 threads. At 1,000 requests/s HAProxy needs half of one.
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # If a replica dies, HAProxy retries its requests on another one. Predicting a photo twice has no side effects. With
    # no other replica, the first refused connection sends the request to Serve's own proxy, which waits for a replica,
    # and answers 502 if that one dies too. Ray's default is three in a row, of all requests together: others in between
    # can use up a request's five retries, and HAProxy then closes its connection.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response response-timeout 502",
    "RAY_SERVE_HAPROXY_RETRIES": "5",
    "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(REPLAYED_BYTES),
    "RAY_SERVE_HAPROXY_MAXCONN": "1024",  # each connection may fill its buffer: 1 GB at most
    "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "leastconn\n" + DEFAULTS,
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_DOWNINTER": f"250ms\n{REFUSALS}    default-server",  # 250 ms is the default
    # A replica with a hung engine never finishes its requests, so a graceful stop would wait in vain.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # Serve replaces a dead HAProxy after three failed checks in a row. The default period is 10 s.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # Serve kills a proxy that is not ready after three such times, and then gives up. The default is 5 s; on two cores
    # that were busy with other work, HAProxy's manager took longer than 15 s, and the service did not start.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    # For a replica that hangs and never answers. The application's own limit of 30 s comes first.
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "40",
    # Ray's default buckets have none between 10 s and 60 s, so percentiles in between are interpolated: 50 s was shown
    # for answers that took 12 s.
    "RAY_SERVE_REQUEST_LATENCY_BUCKETS_MS": "10,20,30,50,70,100,150,200,300,500,1000,2000,3000,5000,10000,20000,40000",
    # A log file and its two older ones take 150 MB; by default 3 GB, and a pod's volume for logs has 5 GB.
    "RAY_ROTATION_MAX_BYTES": "50000000",
    "RAY_ROTATION_BACKUP_COUNT": "2",
    "OTEL_SERVICE_NAME": "recognition",  # the service name in every OpenTelemetry trace
}

# What a batch needs of them (`python -m serve_app batch`), and one of its own: Ray ends workers that are idle for 1 s,
# beyond one for each core. Those of a batch take 1.1 s to start.
BATCH = {name: value for name, value in VARIABLES.items() if not name.startswith("RAY_SERVE_")}
BATCH |= {"RAY_num_workers_soft_limit": "16"}


def local(temp: Path) -> dict[str, str]:
    """VARIABLES, with HAProxy's files and Ray's token below `temp`, and free ports: services do not collide.

    Raises OSError when no ports are left.
    """
    files = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock", "METRICS_SOCKET_PATH": "metrics.sock"}
    files |= {"SERVER_STATE_BASE": "", "SERVER_STATE_FILE": "server-state"}
    paths = {f"RAY_SERVE_HAPROXY_{name}": str(temp / "haproxy" / file) for name, file in files.items()}
    # By default a stopping replica waits 30 s so that HAProxy on other nodes can remove it. Here there is one HAProxy,
    # and Serve updates it at once.
    own = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2"}
    # Ray's ports are open on all addresses of the machine, and anybody who may use them can run code. The token is this
    # service's own: two services that start at once do not overwrite each other's, and HOME may be unwritable.
    own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(temp / TOKEN)}
    try:
        Path.home()
    except RuntimeError:  # a user without an entry in /etc/passwd; libraries of the replicas ask for one
        own["HOME"] = str(temp)
    own["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(Path(sys.prefix) / "bin" / "haproxy-keeper")
    # Most of these ports are opened with SO_REUSEPORT. Two services with the same ports would answer each other's
    # requests.
    first = free_block()
    own["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] = str(first)
    own["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] = str(first + BLOCK - len(PORTS) - 1)
    own |= {name: str(first + BLOCK - n) for n, name in enumerate(PORTS, 1)}
    return VARIABLES | paths | own


def free_block() -> int:
    """The first of BLOCK consecutive TCP ports in 30000-31000 on which nothing listens.

    Ray expects its replicas in this range. The system gives none of these ports to outgoing connections, whose range
    starts at 32768. To reserve the block, the UDP port with the first number stays bound until this process ends, so a
    service that starts in the meantime takes another block. Raises OSError when no block is left.
    """
    blocks = list(range(30000, 31000, BLOCK))
    random.shuffle(blocks)
    for first in blocks:
        if reserve(first) and not any(listening(port) for port in range(first, first + BLOCK)):
            return first
    raise OSError(f"no {BLOCK} consecutive free ports between 30000 and 31000")


def reserve(port: int) -> bool:
    """Binds the UDP port of this number until this process ends. False if another process, or this one, has it."""
    reservation = socket.socket(type=socket.SOCK_DGRAM)
    try:
        reservation.bind(("127.0.0.1", port))
    except OSError:
        reservation.close()
        return False
    atexit.register(reservation.close)
    return True


def listening(port: int) -> bool:
    """Whether something accepts connections to this port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
