"""Serve drops keys that it does not know, so we look for them; and what is legal alone must fit together."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from ray.util.placement_group import PlacementGroup  # noqa: F401 - importing it early keeps a warning out of the tests

from loadtests.service import ROOT
from serve_app.configuration import unknown_keys
from serve_app.deployments import Detector, Postprocessor, Preprocessor
from serve_app.ingress import Ingress
from serve_app.settings import AppSettings, DetectorSettings

CONTENT: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
APP = CONTENT["applications"][0]
DEPLOYMENTS = {d["name"]: d for d in APP["deployments"]}


def test_the_config_has_no_unknown_key() -> None:
    assert unknown_keys(CONTENT, ServeDeploySchema) == []
    ServeDeploySchema.model_validate(CONTENT)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"typo": 1}, ".typo"),
        ({"http_options": {"prot": 1}}, ".http_options.prot"),
        ({"applications": [{"deployments": [{"max_concurrent_queries": 1}]}]}, ".applications.deployments.max_concurrent_queries"),
        (
            {"applications": [{"deployments": [{"autoscaling_config": {"min_replica": 1}}]}]},
            ".applications.deployments.autoscaling_config.min_replica",
        ),
        (
            {"applications": [{"deployments": [{"ray_actor_options": {"num_cpu": 1}}]}]},
            ".applications.deployments.ray_actor_options.num_cpu",
        ),
    ],
)  # fmt: skip
def test_unknown_keys_are_found(wrong: dict[str, Any], expected: str) -> None:
    assert unknown_keys(wrong, ServeDeploySchema) == [expected]


def test_the_arguments_and_the_user_config_are_ours() -> None:
    AppSettings.model_validate(APP["args"])
    DetectorSettings.model_validate(DEPLOYMENTS["Detector"]["user_config"])


def test_the_config_names_the_deployments_of_the_graph() -> None:
    assert set(DEPLOYMENTS) == {c.__name__ for c in (Ingress, Preprocessor, Detector, Postprocessor)}


def test_a_batch_can_fill() -> None:
    """Serve only warns when a replica may not hold a whole batch; its default of 5 would cap batches of 8."""
    detector = DEPLOYMENTS["Detector"]
    assert detector["max_ongoing_requests"] >= detector["user_config"]["max_batch_size"]


def test_every_queue_is_bounded_and_the_first_is_the_longest() -> None:
    """Else Serve's proxy refuses, in plain text, what a stage would refuse with a problem document."""
    room = {n: d["max_ongoing_requests"] + d["max_queued_requests"] for n, d in DEPLOYMENTS.items()}
    assert all(d["max_queued_requests"] > 0 for d in DEPLOYMENTS.values())
    assert DEPLOYMENTS["Ingress"]["max_ongoing_requests"] > sum(room.values()) - room["Ingress"]


def test_it_schedules_on_two_cores_without_a_gpu_twice() -> None:
    """Twice, because a rolling update starts new replicas beside the old ones."""
    options = [d["ray_actor_options"] | {"replicas": d["num_replicas"]} for d in DEPLOYMENTS.values()]
    assert 2 * sum(o["num_cpus"] * o["replicas"] for o in options) <= 2
    assert not any(o.get("num_gpus") for o in options)


def test_the_application_times_out_before_the_proxy() -> None:
    assert APP["args"]["timeout_s"] < CONTENT["http_options"]["request_timeout_s"]
