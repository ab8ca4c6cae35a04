"""Runs Debian's Prometheus with the shipped rules beside a service on this machine, and queries it."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from loadtests.service import Service, free_port, ray_files, running
from serve_app.ops import monitoring

Labels = dict[str, str]


class Prometheus:
    """A client of Prometheus's HTTP API. Its methods raise httpx.HTTPError."""

    def __init__(self, url: str, http: httpx.Client) -> None:
        self.url, self._http = url, http
        self.window = "1m"  # stands for $__rate_interval; 1m is what Grafana takes at this scrape interval

    def _ask(self, path: str, **params: object) -> Any:  # noqa: ANN401 - depends on the path
        answer = self._http.get(f"{self.url}/api/v1/{path}", params={k: str(v) for k, v in params.items()})
        answer.raise_for_status()
        return answer.json()["data"]

    def _shown(self, expr: str) -> str:
        return expr.replace("$__rate_interval", self.window)

    def now(self, expr: str, at: float | None = None) -> list[tuple[Labels, float]]:
        """An instant query: labels and value of each series, without NaN and infinity (a division by zero).

        `at`, in seconds since 1970, is the same moment for several queries; each has its own when not given.
        """
        found = self._ask("query", query=self._shown(expr), time=at or time.time())["result"]
        values = [(one["metric"], float(one["value"][1])) for one in found]
        return [(labels, value) for labels, value in values if math.isfinite(value)]

    def value(self, expr: str) -> float:
        """The value of the only series; 0 when there is none."""
        found = self.now(expr)
        assert len(found) <= 1, f"{expr}: {len(found)} series"
        return found[0][1] if found else 0.0

    def over(self, expr: str, seconds: float, step_s: float = 5.0) -> list[tuple[Labels, list[tuple[float, float]]]]:
        """A range query until now: labels and (seconds from now, value) points of each series."""
        end = time.time()
        found = self._ask("query_range", query=self._shown(expr), start=end - seconds, end=end, step=step_s)["result"]
        return [(one["metric"], [(t - end, float(v)) for t, v in one["values"]]) for one in found]

    def firing(self) -> set[str]:
        """The names of the firing alerts."""
        return {one["labels"]["alertname"] for one in self._ask("alerts")["alerts"] if one["state"] == "firing"}

    def targets(self) -> list[str]:
        """The scrape targets that are up."""
        return [labels["instance"] for labels, value in self.now("up") if value == 1]


@contextmanager
def observed(content: dict[str, Any]) -> Iterator[tuple[Service, Prometheus]]:
    """Yields a service and its Prometheus. Raises NotStarted, TimeoutError, FileNotFoundError (no Prometheus)."""
    if not shutil.which("prometheus"):
        raise FileNotFoundError("no Prometheus: apt-get install prometheus")
    url = f"http://127.0.0.1:{free_port()}"
    haproxy = str(free_port())
    env = {"RAY_SERVE_HAPROXY_METRICS_PORT": haproxy, "RAY_PROMETHEUS_HOST": url}  # Ray's dashboard queries it too
    with running(content, env=env) as service, tempfile.TemporaryDirectory(prefix="prometheus-") as folder:
        configure(Path(folder), ray_files(service), haproxy)
        with started(Path(folder), url) as prometheus:
            yield service, prometheus


def configure(folder: Path, ray: Path, haproxy_port: str) -> None:
    """Writes the shipped configuration and rules, and the targets to scrape, to a folder."""
    shutil.copy(monitoring.FOLDER / "prometheus.yml", folder)
    (folder / "rules.yml").write_text(yaml.safe_dump(monitoring.rules(), sort_keys=False))
    (folder / "ray.json").symlink_to(ray / "prom_metrics_service_discovery.json")
    (folder / "haproxy.json").write_text(json.dumps([{"targets": [f"127.0.0.1:{haproxy_port}"]}]))


@contextmanager
def started(folder: Path, url: str) -> Iterator[Prometheus]:
    """Starts Prometheus, yields it once it is ready, and stops it at the end. Raises TimeoutError."""
    address = url.removeprefix("http://")
    files = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command = ["prometheus", *files, f"--web.listen-address={address}", "--log.level=warn"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                if httpx.get(f"{url}/-/ready", trust_env=False).is_success:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        else:
            raise TimeoutError(f"{url} does not answer")
        with httpx.Client(timeout=30, trust_env=False) as http:
            yield Prometheus(url, http)
    finally:
        process.terminate()
        process.wait(20)
