"""Every overlay as it would be applied: valid to the last key, and its numbers fit together."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from serve_app.ops import manifests, ray_environment, serve_config
from serve_app.ops.overlay import parse_quantity
from tests.conftest import ROOT, kubectl, shared

KUBERNETES = "1.36"
CUSTOM = {
    "RayService": "rayservice-ray-v1",
    "NodePool": "nodepool-karpenter-v1",
    "PodMonitor": "podmonitor-monitoring-v1",
    "PrometheusRule": "prometheusrule-monitoring-v1",
}
PARTS = "overlays/production", "components/canary"
OVERLAYS = [path.name for path in manifests.overlays()]
Objects = list[dict[str, Any]]


def test_the_overlays() -> None:
    assert OVERLAYS == ["local", "production", "staging"]


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest, rendered: dict[str, Path]) -> tuple[str, Objects]:
    return request.param, list(yaml.safe_load_all(rendered[request.param].read_text()))


def of(objects: Objects, kind: str) -> dict[str, Any]:
    (found,) = (o for o in objects if o["kind"] == kind)
    return found


def groups(objects: Objects) -> tuple[dict[str, Any], dict[str, Any]]:
    """The head's and the workers' pod spec."""
    cluster = of(objects, "RayService")["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    return cluster["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]


def gigabytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()
    return int(number) / (1 if unit == "Gi" else 1024)


def serve(objects: Objects) -> tuple[dict[str, Any], dict[str, Any]]:
    """The Serve configuration, and the one deployment of the first application."""
    content = yaml.safe_load(of(objects, "RayService")["spec"]["serveConfigV2"])
    (deployment,) = content["applications"][0]["deployments"]
    return content, deployment


def test_every_object_is_valid(overlay: tuple[str, Objects]) -> None:
    for one in overlay[1]:
        if one["kind"] in CUSTOM:
            schema = json.loads(shared("schemas", f"{CUSTOM[one['kind']]}.json").read_text())
            jsonschema.Draft202012Validator(schema).validate(one)  # one schema has a pattern that Python refuses
        else:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_the_schemas_would_refuse_a_stale_key(overlay: tuple[str, Objects]) -> None:
    stale = json.loads(json.dumps(of(overlay[1], "RayService")))
    stale["spec"]["rayClusterConfig"]["headGroupSpec"]["replicas"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(stale, json.loads(shared("schemas", "rayservice-ray-v1.json").read_text()))


def test_the_serve_config_is_the_one_with_the_stated_differences(overlay: tuple[str, Objects]) -> None:
    name, objects = overlay
    content, _ = serve(objects)
    serve_config.check(content)
    base, every, one = (
        yaml.safe_load(file.read_text())
        for file in (
            ROOT / "serve_config.yaml",
            manifests.BASE / "serve.yaml",
            manifests.OVERLAYS / name / "serve.yaml",
        )
    )
    assert content == serve_config.merged(serve_config.merged(base, every), one)
    assert content["http_options"]["host"] == "0.0.0.0", "probes come from outside the pod"
    keys = {} if name == "local" else {"api_keys_file": "/etc/recognition-keys/keys"}
    assert content["applications"][0]["args"] == base["applications"][0]["args"] | keys


def test_head_and_workers_have_every_switch(overlay: tuple[str, Objects]) -> None:
    for pod in groups(overlay[1]):
        env = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
        assert env == ray_environment.VARIABLES


def test_one_image_and_the_locked_ray(overlay: tuple[str, Objects]) -> None:
    assert len({pod["containers"][0]["image"] for pod in groups(overlay[1])}) == 1
    locked = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert locked
    assert of(overlay[1], "RayService")["spec"]["rayClusterConfig"]["rayVersion"] == locked[1]


def test_nothing_runs_as_root_or_may_become_it(overlay: tuple[str, Objects]) -> None:
    for pod in groups(overlay[1]):
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["readOnlyRootFilesystem"]


def test_what_a_pod_writes_has_a_limit_and_the_code_is_not_among_it(overlay: tuple[str, Objects]) -> None:
    for pod in groups(overlay[1]):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert all(volume.get("emptyDir", {"sizeLimit": 1}).get("sizeLimit") for volume in volumes.values())
        written = {m["mountPath"] for m in pod["containers"][0]["volumeMounts"] if not m.get("readOnly")}
        assert written == {"/tmp/ray", "/tmp", "/home/ray", "/app/models/cache"}  # noqa: S108 - in the pod


def test_the_namespace_refuses_what_is_not_restricted(rendered: dict[str, Path]) -> None:
    """Pod Security `restricted`, for the namespaces of the local overlay and of EKS."""
    for file in (rendered["local"], ROOT / "kuberay" / "eks.yaml"):
        namespaces = [o for o in yaml.safe_load_all(file.read_text()) if o["kind"] == "Namespace"]
        (ours,) = (o["metadata"] for o in namespaces if o["metadata"]["name"] == "recognition")
        assert ours["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_what_began_is_answered_before_its_pod_or_cluster_goes(overlay: tuple[str, Objects]) -> None:
    """Grace > preStop + Ray's drain + the longest request; deletion > the load balancer's deregistration + that."""
    name, objects = overlay
    content, deployment = serve(objects)
    longest = content["applications"][0]["args"]["timeout_s"]
    assert deployment["graceful_shutdown_timeout_s"] > longest
    _, workers = groups(objects)
    command = workers["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:2] == ["haproxy-keeper", "drain"]
    stop = 2 * int(command[2])
    assert workers["terminationGracePeriodSeconds"] > stop + 30 + longest
    delay = of(objects, "RayService")["spec"]["rayClusterDeletionDelaySeconds"]
    leaves = 0
    if name != "local":
        attributes = of(objects, "Ingress")["metadata"]["annotations"]
        leaves = int(attributes["alb.ingress.kubernetes.io/target-group-attributes"].rpartition("=")[2])
        balancer = attributes["alb.ingress.kubernetes.io/load-balancer-attributes"].split(",")
        idle = int(dict(each.split("=") for each in balancer)["idle_timeout.timeout_seconds"])
        assert content["http_options"]["keep_alive_timeout_s"] > idle
    assert delay > leaves + longest


def test_the_replicas_fit_their_workers(overlay: tuple[str, Objects]) -> None:
    _, objects = overlay
    _, deployment = serve(objects)
    cluster = of(objects, "RayService")["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    booked = float(group["rayStartParams"].get("num-cpus", parse_quantity(resources["requests"]["cpu"])))
    options = deployment["ray_actor_options"]
    per_worker = booked // options["num_cpus"]
    if gpus := options["num_gpus"]:
        assert per_worker == int(resources["limits"]["nvidia.com/gpu"]) / gpus, "no GPU idles for want of cores"
    most = deployment.get("autoscaling_config", {}).get("max_replicas") or deployment["num_replicas"]
    assert per_worker * group["maxReplicas"] >= most
    assert per_worker * group["maxReplicas"] >= 2 * deployment.get("num_replicas", 0), (
        "an update in place: twice as many"
    )


def test_the_local_overlay_fits_a_small_node_twice(rendered: dict[str, Path]) -> None:
    """2 cores and 20 GiB, and an upgrade runs two clusters; the rest of a node's own pods take half a core."""
    objects = list(yaml.safe_load_all(rendered["local"].read_text()))
    head, worker = (pod["containers"][0] for pod in groups(objects))
    scaler = of(objects, "RayService")["spec"]["rayClusterConfig"]["autoscalerOptions"]
    asked = [c["resources"] for c in (head, worker, scaler)]
    assert 2 * sum(parse_quantity(r["requests"]["cpu"]) for r in asked) <= 1.5
    assert 2 * sum(gigabytes(r["limits"]["memory"]) for r in asked) <= 16
    assert {c["imagePullPolicy"] for c in (head, worker)} == {"Never"}


@pytest.mark.parametrize(
    ("base", "difference", "both"),
    [
        pytest.param({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}, {"a": 1, "b": {"c": 2, "d": 3}}, id="mappings merge"),
        pytest.param({"a": 1, "b": 2}, {"b": None}, {"a": 1}, id="null takes away"),
        pytest.param({"a": [1, 2]}, {"a": [3]}, {"a": [3]}, id="plain lists are replaced"),
        pytest.param(
            [{"name": "x", "a": 1}, {"name": "y"}],
            [{"name": "x", "b": 2}, {"name": "z"}],
            [{"name": "x", "a": 1, "b": 2}, {"name": "y"}, {"name": "z"}],
            id="named lists merge by name",
        ),
    ],
)
def test_merging(base: object, difference: object, both: object) -> None:
    assert serve_config.merged(base, difference) == both


def test_what_is_monitored_is_a_port_of_every_pod(overlay: tuple[str, Objects]) -> None:
    name, objects = overlay
    if name == "local":  # no Prometheus operator is asked for there
        assert not [o for o in objects if o["kind"] == "PodMonitor"]
        return
    asked = {end["port"] for end in of(objects, "PodMonitor")["spec"]["podMetricsEndpoints"]}
    for pod in groups(objects):
        assert asked <= {port["name"] for port in pod["containers"][0]["ports"]}


def test_rays_dashboard_finds_prometheus_and_grafana(overlay: tuple[str, Objects]) -> None:
    """Names and ports of the releases in kuberay/addons, from the head only, and no policy drops them."""
    name, objects = overlay
    head, workers = (pod["containers"][0] for pod in groups(objects))
    assert "envFrom" not in workers
    if name == "local":
        assert "envFrom" not in head
        return
    (source,) = head["envFrom"]
    (told,) = (
        o for o in objects if o["metadata"]["name"] == source["configMapRef"]["name"] and o["kind"] == "ConfigMap"
    )
    folder = ROOT / "kuberay" / "addons"
    lines = [line.split() for line in (folder / "charts.txt").read_text().splitlines() if not line.startswith("#")]
    release, namespace = next(line[:2] for line in lines if line[2] == "kube-prometheus-stack")
    assert told["data"] == {
        "RAY_PROMETHEUS_HOST": f"http://{release}-kube-prometheus-prometheus.{namespace}:9090",
        "RAY_GRAFANA_HOST": f"http://{release}-grafana.{namespace}",
        "RAY_GRAFANA_IFRAME_HOST": "http://127.0.0.1:3000",
    }
    (policy,) = (o["spec"] for o in objects if o["kind"] == "NetworkPolicy" and o["metadata"] == told["metadata"])
    assert policy["podSelector"]["matchLabels"]["ray.io/node-type"] == "head"
    ((rule,),) = (policy["egress"],)
    assert rule["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}]
    assert {port["port"] for port in rule["ports"]} == {9090, 3000, 80}
    assert addon(release)["grafana"]["grafana.ini"]["security"]["allow_embedding"], "the panels are frames"


def test_the_canary_component(tmp_path: Path) -> None:
    """No overlay has it: it is rendered on top of the production overlay, as its reader would."""
    manifests.write()
    overlay, component = (os.path.relpath(ROOT / "kuberay" / part, tmp_path) for part in PARTS)
    content = {"kind": "Kustomization", "resources": [overlay], "components": [component]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(content))
    built = subprocess.run([kubectl(), "kustomize", str(tmp_path)], capture_output=True, check=True).stdout
    service = of(list(yaml.safe_load_all(built)), "RayService")
    jsonschema.validate(service, json.loads(shared("schemas", "rayservice-ray-v1.json").read_text()))
    strategy = service["spec"]["upgradeStrategy"]
    longest = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]["timeout_s"]
    assert strategy["type"] == "NewClusterWithIncrementalUpgrade"
    assert strategy["clusterUpgradeOptions"]["intervalSeconds"] > longest


def test_add_ons_are_pinned_and_their_values_are_beside_them() -> None:
    folder = ROOT / "kuberay" / "addons"
    lines = [line.split() for line in (folder / "charts.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for _, _, _, version, _ in lines)
    assert {f"{release}.yaml" for release, *_ in lines} == {path.name for path in folder.glob("*.yaml")}
    for release, *_ in lines:
        assert isinstance(yaml.safe_load((folder / f"{release}.yaml").read_text()), dict)


def addon(release: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((ROOT / "kuberay" / "addons" / f"{release}.yaml").read_text())
    return values


def test_the_operator_is_not_throttled() -> None:
    """Helm merges its chart's limit of 100m into ours; only null removes it."""
    limits = addon("kuberay-operator")["resources"]["limits"]
    assert "cpu" in limits
    assert limits["cpu"] is None


def test_every_receiver_reads_its_address_from_a_mounted_secret() -> None:
    alertmanager = addon("monitoring")["alertmanager"]
    (secret,) = alertmanager["alertmanagerSpec"]["secrets"]
    config = alertmanager["config"]
    receivers = {one.pop("name"): one for one in config["receivers"]}
    routes = [config["route"], *config["route"]["routes"]]
    assert {route["receiver"] for route in routes} == set(receivers) == {"null", "page", "ticket"}
    assert receivers.pop("null") == {}
    for name, receiver in receivers.items():
        assert receiver["slack_configs"][0]["api_url_file"] == f"/etc/alertmanager/secrets/{secret}/{name}"


def test_what_auto_mode_leaves_to_its_user_is_valid() -> None:
    objects = list(yaml.safe_load_all((ROOT / "kuberay" / "eks.yaml").read_text()))
    for one in objects:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    ingress = yaml.safe_load((ROOT / "kuberay" / "components" / "aws" / "ingress.yaml").read_text())
    assert of(objects, "IngressClass")["metadata"]["name"] == ingress["spec"]["ingressClassName"]


def test_the_pipeline_may_apply_what_an_overlay_renders_and_no_secret(overlay: tuple[str, Objects]) -> None:
    roles = [
        one for one in yaml.safe_load_all((ROOT / "kuberay" / "eks.yaml").read_text()) if one["kind"].endswith("Role")
    ]
    allowed = {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    for one in overlay[1]:
        group, _, _ = one["apiVersion"].rpartition("/")
        plural = re.sub("ys$", "ies", re.sub("sss$", "sses", f"{one['kind'].lower()}s"))
        if one["kind"] != "Namespace":  # the local overlay's own
            assert {(group, plural, verb) for verb in ("get", "create", "patch")} <= allowed, plural
    assert not {resource for _, resource, _ in allowed} & {"secrets", "*", "pods/exec", "roles", "rolebindings"}
    assert not {verb for *_, verb in allowed} & {"*", "delete"}
