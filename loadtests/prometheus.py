"""A Prometheus of Debian's beside a service on this machine, with the shipped rules; and its answers."""

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
from serve_app import monitoring

Labels = dict[str, str]
WINDOW = "1m"  # what Grafana makes of $__rate_interval at this scrape interval


class Prometheus:
    """Its HTTP API."""

    def __init__(self, url: str, http: httpx.Client) -> None:
        self.url, self._http = url, http

    def _ask(self, path: str, **params: object) -> Any:  # noqa: ANN401 - as many shapes as paths
        answer = self._http.get(f"{self.url}/api/v1/{path}", params={k: str(v) for k, v in params.items()})
        answer.raise_for_status()
        return answer.json()["data"]

    def now(self, expr: str) -> list[tuple[Labels, float]]:
        """An instant query: labels and value of each series that has one. Not those that divide by nothing."""
        found = self._ask("query", query=shown(expr))["result"]
        values = [(one["metric"], float(one["value"][1])) for one in found]
        return [(labels, value) for labels, value in values if math.isfinite(value)]

    def value(self, expr: str) -> float:
        """Of the one series; 0 when there is none."""
        found = self.now(expr)
        assert len(found) <= 1, f"{expr}: {len(found)} series"
        return found[0][1] if found else 0.0

    def over(self, expr: str, seconds: float, step_s: float = 5.0) -> list[tuple[Labels, list[tuple[float, float]]]]:
        """A range query until now: (seconds ago, value) of each series."""
        end = time.time()
        found = self._ask("query_range", query=shown(expr), start=end - seconds, end=end, step=step_s)["result"]
        return [(one["metric"], [(t - end, float(v)) for t, v in one["values"]]) for one in found]

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        return {one["labels"]["alertname"] for one in self._ask("alerts")["alerts"] if one["state"] == "firing"}

    def targets(self) -> list[str]:
        """What is up."""
        return [labels["instance"] for labels, value in self.now("up") if value == 1]


def shown(expr: str) -> str:
    """As Grafana would send it."""
    return expr.replace("$__rate_interval", WINDOW)


@contextmanager
def observed(content: dict[str, Any]) -> Iterator[tuple[Service, Prometheus]]:
    """A service and its Prometheus. Raises FileNotFoundError where Prometheus is not installed."""
    if not shutil.which("prometheus"):
        raise FileNotFoundError("no Prometheus: apt-get install prometheus")
    prometheus = f"http://127.0.0.1:{free_port(9400)}"
    haproxy = str(free_port(9300))
    env = {"RAY_SERVE_HAPROXY_METRICS_PORT": haproxy, "RAY_PROMETHEUS_HOST": prometheus}  # Ray's dashboard asks it too
    with running(content, env=env) as service, tempfile.TemporaryDirectory(prefix="prometheus-") as folder:
        configure(Path(folder), ray_files(service), haproxy)
        with started(Path(folder), prometheus) as asked:
            yield service, asked


def configure(folder: Path, ray: Path, haproxy_port: str) -> None:
    """The shipped configuration, and where to scrape."""
    shutil.copy(monitoring.FOLDER / "prometheus.yml", folder)
    (folder / "rules.yml").write_text(yaml.safe_dump(monitoring.rules(), sort_keys=False))
    (folder / "ray.json").symlink_to(ray / "prom_metrics_service_discovery.json")
    (folder / "haproxy.json").write_text(json.dumps([{"targets": [f"127.0.0.1:{haproxy_port}"]}]))


@contextmanager
def started(folder: Path, url: str) -> Iterator[Prometheus]:
    """Prometheus, until it answers; stopped at the end."""
    address = url.removeprefix("http://")
    files = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    typed = ["prometheus", *files, f"--web.listen-address={address}", "--log.level=warn"]
    process = subprocess.Popen(typed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
