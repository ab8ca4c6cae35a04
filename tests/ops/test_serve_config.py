"""Serve drops keys that it does not know, so we look for them; and what is legal alone must fit together."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from ray.util.placement_group import PlacementGroup  # noqa: F401 - importing it early keeps a warning out of the tests

from loadtests.service import ROOT
from serve_app.graph.detector import CONCURRENT_BATCHES, Detector
from serve_app.graph.postprocessor import Postprocessor
from serve_app.graph.preprocessor import Preprocessor
from serve_app.http.ingress import Ingress
from serve_app.ops.serve_config import apart, unknown_keys
from serve_app.settings import AppSettings, DetectorSettings

CONTENT: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
APART = apart(CONTENT)
BOTH = [pytest.param(CONTENT, id="together"), pytest.param(APART, id="apart")]


@pytest.mark.parametrize("content", BOTH)
def test_the_config_has_no_unknown_key(content: dict[str, Any]) -> None:
    assert unknown_keys(content, ServeDeploySchema) == []
    ServeDeploySchema.model_validate(content)


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


def application(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    (app,) = content["applications"]
    return app["args"], {d["name"]: d for d in app["deployments"]}


@pytest.mark.parametrize("content", BOTH)
def test_the_arguments_and_the_user_config_are_ours(content: dict[str, Any]) -> None:
    args, deployments = application(content)
    AppSettings.model_validate(args)
    (holder,) = (d for d in deployments.values() if "user_config" in d)
    DetectorSettings.model_validate(holder["user_config"])


def test_the_config_names_the_deployments_of_the_graph() -> None:
    assert set(application(CONTENT)[1]) == {Ingress.__name__}
    assert set(application(APART)[1]) == {c.__name__ for c in (Ingress, Preprocessor, Detector, Postprocessor)}


def test_apart_differs_only_in_placement() -> None:
    args, apart_args = application(CONTENT)[0], application(APART)[0]
    assert {k for k in apart_args if args[k] != apart_args[k]} == {"placement"}
    assert {k: v for k, v in APART.items() if k != "applications"} == {
        k: v for k, v in CONTENT.items() if k != "applications"
    }


@pytest.mark.parametrize("content", BOTH)
def test_batches_can_fill(content: dict[str, Any]) -> None:
    """Serve only warns when a replica may not hold all batches; its default of 5 would cap batches of 8."""
    (holder,) = (d for d in application(content)[1].values() if "user_config" in d)
    assert holder["max_ongoing_requests"] >= holder["user_config"]["max_batch_size"] * CONCURRENT_BATCHES


@pytest.mark.parametrize("content", BOTH)
def test_every_queue_is_bounded_and_the_first_is_the_longest(content: dict[str, Any]) -> None:
    """Else Serve refuses, in plain text, what a stage would refuse with a problem document."""
    args, deployments = application(content)
    room = {n: d["max_ongoing_requests"] + d["max_queued_requests"] for n, d in deployments.items()}
    behind = sum(room.values()) - room["Ingress"] or args["max_waiting_images"]
    assert all(d["max_queued_requests"] > 0 for d in deployments.values())
    assert deployments["Ingress"]["max_ongoing_requests"] > behind


@pytest.mark.parametrize("content", BOTH)
def test_it_schedules_on_two_cores_without_a_gpu_twice(content: dict[str, Any]) -> None:
    """Twice, because a rolling update starts new replicas beside the old ones."""
    options = [d["ray_actor_options"] | {"replicas": d["num_replicas"]} for d in application(content)[1].values()]
    assert 2 * sum(o["num_cpus"] * o["replicas"] for o in options) <= 2
    assert not any(o.get("num_gpus") for o in options)


def test_the_application_times_out_before_the_proxy() -> None:
    assert application(CONTENT)[0]["timeout_s"] < CONTENT["http_options"]["request_timeout_s"]
