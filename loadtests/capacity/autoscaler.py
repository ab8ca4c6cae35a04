"""Serve's own autoscaler in simulated time: averages, policy, delays and bounds are Ray's code.

Ray has no public API for it without a cluster, so this module uses private names of the pinned version. Its tests fail
when a new version has other names.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from ray.serve import autoscaling_policy
from ray.serve._private import autoscaling_state
from ray.serve._private.common import (
    RUNNING_REQUESTS_KEY,
    DeploymentID,
    ReplicaID,
    ReplicaMetricReport,
    TimeStampedValue,
)
from ray.serve._private.constants import RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR as RECORD_FACTOR
from ray.serve.config import AutoscalingConfig

from serve_app.graph.autoscaling import WAITED

DEPLOYMENT = DeploymentID("Ingress", "recognition")


class Autoscaler:
    """The autoscaler of one deployment. Replicas have names; times are seconds of the simulation."""

    def __init__(self, autoscaling_config: dict[str, Any]) -> None:
        with warnings.catch_warnings(action="ignore"):  # metrics_interval_s is deprecated; its successor is global
            self.config = AutoscalingConfig.model_validate(autoscaling_config)
        self._state: Any = autoscaling_state.DeploymentAutoscalingState(DEPLOYMENT)
        deployment = SimpleNamespace(autoscaling_config=self.config, gang_scheduling_config=None)
        info: Any = SimpleNamespace(
            deployment_config=deployment, target_capacity=None, target_capacity_direction=None,
            config_changed=lambda _: True,
        )  # fmt: skip
        self.target: int = self._state.register(info, self.config.min_replicas)
        self._series: dict[str, dict[str, list[TimeStampedValue]]] = {}

    @property
    def record_every_s(self) -> float:
        """Seconds between two records of a replica."""
        return float(min(self.config.look_back_period_s * RECORD_FACTOR, self.config.metrics_interval_s))

    def record(self, replica: str, now: float, ongoing: float, waited_s: float) -> None:
        """Records the ongoing requests and the mean wait (seconds) of one replica."""
        series = self._series.setdefault(replica, {RUNNING_REQUESTS_KEY: [], WAITED: []})
        oldest = now - self.config.look_back_period_s
        for name, value in ((RUNNING_REQUESTS_KEY, ongoing), (WAITED, waited_s)):
            kept = [point for point in series[name] if point.timestamp > oldest]
            series[name] = [*kept, TimeStampedValue(now, value)]

    def push(self, replicas: list[str], now: float) -> None:
        """Reports the records of these replicas to the controller, as replicas do every `metrics_interval_s`."""
        self._series = {name: self._series[name] for name in replicas if name in self._series}
        for name, series in self._series.items():
            report = ReplicaMetricReport(replica_id=ReplicaID(name, DEPLOYMENT), metrics=dict(series), timestamp=now)
            self._state.record_request_metrics_for_replica(report)

    def decide(self, running: list[str], now: float) -> int:
        """Runs one decision; returns the target number of replicas."""
        self._state.update_running_replica_ids([ReplicaID(name, DEPLOYMENT) for name in running])
        with at(now):
            self.target = self._state.get_decision_num_replicas(self.target)
        return self.target


@contextmanager
def at(now: float) -> Iterator[None]:
    """Sets the time that Ray's autoscaling modules see."""
    clock = SimpleNamespace(time=lambda: now, monotonic=lambda: now)
    with patch.object(autoscaling_state, "time", clock), patch.object(autoscaling_policy, "time", clock):
        yield
