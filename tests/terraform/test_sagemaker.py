"""SageMaker's life cycle in terraform/: planned, applied to moto as far as that speaks it, and its outputs used."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any

import pytest

from models import drift, register
from tests.terraform.applied import IMAGE, Root

JOBS = "arn:aws:iam::123456789012:role/recognition-staging-sagemaker-jobs"


@pytest.fixture(scope="module")
def outputs(account: Root) -> dict[str, Any]:
    return {name: one["value"] for name, one in json.loads(account("output", "-json")).items()}


@pytest.fixture(scope="module")
def planned(account: Root) -> dict[str, dict[str, Any]]:
    """What `plan` would make, by address."""
    return {change["address"]: change["change"]["after"] for change in account.plan["resource_changes"]}


# An `aws` that says what it was called with, in place of the CLI's own parser.
AWS = "aws() { python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' \"$@\"; }\n"


def typed(command: str, **env: str) -> dict[str, str]:
    """The options of an `aws` command that Terraform printed, as a shell understands them."""
    made = subprocess.run(
        ["bash", "-c", AWS + command], env=os.environ | env, capture_output=True, text=True, check=True
    )
    words = json.loads(made.stdout)
    return dict(zip(words[2::2], words[3::2], strict=True))


def test_one_command_starts_a_training_job_and_goes_on_with_it(account: Root, outputs: dict[str, Any]) -> None:
    client, bucket = account.client("sagemaker"), "s3://recognition-staging-sagemaker-123456789012"
    options = typed(outputs["train"], TRAINING="road")
    name, (key, uri) = options["--training-job-name"], options["--checkpoint-config"].split("=")
    assert re.fullmatch(r"road-\d{10}", name), "a job's name cannot be used again"
    assert (key, uri) == ("S3Uri", f"{bucket}/checkpoints/road")
    asked = json.loads(options["--cli-input-json"])
    client.create_training_job(TrainingJobName=name, CheckpointConfig={key: uri}, **asked)
    made = client.describe_training_job(TrainingJobName=name)
    assert made["AlgorithmSpecification"]["TrainingImage"] == IMAGE
    assert made["RoleArn"] == JOBS
    channels = {c["ChannelName"]: c["DataSource"]["S3DataSource"]["S3Uri"] for c in made["InputDataConfig"]}
    assert channels == {"training": f"{bucket}/data/training/", "teacher": f"{bucket}/data/teacher/"}


def test_a_day_becomes_the_accepted_one(account: Root, outputs: dict[str, Any]) -> None:
    *_, source, accepted = outputs["accept_drift"].split()
    target = account.client("scheduler").get_schedule(Name="recognition-staging-drift")["Target"]
    asked = json.loads(target["Input"])
    inputs = {i["InputName"]: i["S3Input"]["S3Uri"] for i in asked["ProcessingInputs"]}
    (report,) = (o["S3Output"]["S3Uri"] for o in asked["ProcessingOutputConfig"]["Outputs"])
    assert (source, accepted) == (f"{report}report.json", f"{inputs['baseline']}report.json")


def test_a_package_can_be_registered_with_the_output(account: Root) -> None:
    address = f"s3://recognition-staging-weights-123456789012/road.pt?versionId={'v' * 32}&sha256={'a' * 64}"
    pinned = register.Pinned(address, "road", "a" * 64, "v" * 32, None)
    template = account.plan["planned_values"]["outputs"]["sagemaker_package"]["value"]
    made = register.package(template, pinned, 2)
    assert made["ModelPackageGroupName"] == "recognition-staging"
    (container,) = made["InferenceSpecification"]["Containers"]
    assert container["Image"] == IMAGE
    difference = json.loads(container["Environment"].pop("SERVE_CONFIG_DIFFERENCE"))
    assert difference["applications"][0]["args"]["weights"] == address
    assert container["Environment"] == {
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
    }


def test_the_schedule_starts_the_monitor(account: Root) -> None:
    target = account.client("scheduler").get_schedule(Name="recognition-staging-drift")["Target"]
    assert target["Arn"] == "arn:aws:scheduler:::aws-sdk:sagemaker:createProcessingJob"
    asked = json.loads(target["Input"].replace("<aws.scheduler.execution-id>", "d32c5kddcf5bb8c3"))
    client = account.client("sagemaker")
    client.create_processing_job(**asked)
    made = client.describe_processing_job(ProcessingJobName="recognition-staging-drift-d32c5kddcf5bb8c3")
    assert made["AppSpecification"] == {
        "ImageUri": IMAGE,
        "ContainerEntrypoint": ["python", "-m", drift.__name__],
        "ContainerArguments": ["recognition-staging"],
    }
    mounts = [i["S3Input"]["LocalPath"] for i in asked["ProcessingInputs"]]
    mounts += [o["S3Output"]["LocalPath"] for o in asked["ProcessingOutputConfig"]["Outputs"]]
    assert sorted(mounts) == [str(drift.BASE / "processing" / name) for name in ("baseline", "captured", "report")]
    (captured,) = (i["S3Input"]["S3Uri"] for i in asked["ProcessingInputs"] if i["InputName"] == "captured")
    assert captured.endswith("/capture/recognition-staging/"), "SageMaker adds the endpoint's name to the destination"


def test_the_bucket_of_the_jobs_is_closed_and_forgets(account: Root, planned: dict[str, dict[str, Any]]) -> None:
    client, bucket = account.client("s3"), "recognition-staging-sagemaker-123456789012"
    assert client.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    (rule,) = client.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"
    assert set(client.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values()) == {True}
    rules = planned['aws_s3_bucket_lifecycle_configuration.sagemaker["this"]']["rule"]
    days = {r["id"]: r["expiration"][0]["days"] for r in rules if r["expiration"]}
    assert days == {"capture": 7, "checkpoints": 30}


def test_the_endpoint_captures_answers_and_no_photos(planned: dict[str, dict[str, Any]]) -> None:
    endpoint = planned['aws_sagemaker_endpoint_configuration.this["this"]']
    (capture,) = endpoint["data_capture_config"]
    assert [o["capture_mode"] for o in capture["capture_options"]] == ["Output"]
    assert capture["capture_content_type_header"] == [
        {"csv_content_types": None, "json_content_types": ["application/json"]}
    ]
    assert endpoint["production_variants"][0]["inference_ami_version"] == "al2-ami-sagemaker-inference-gpu-3-1"


def test_an_approved_package_is_served_instead_of_the_image(account: Root) -> None:
    arn = "arn:aws:sagemaker:eu-central-1:123456789012:model-package/recognition-staging/7"
    asked = [f"-var=sagemaker_model_package={arn}", "-target=aws_sagemaker_model.this", "-refresh=false"]
    changes = account.planned(*asked)["resource_changes"]
    (after,) = (c["change"]["after"] for c in changes if c["type"] == "aws_sagemaker_model")
    (container,) = after["primary_container"]
    assert container["model_package_name"] == arn
    assert container["image"] is None
    assert not container["environment"]


def test_the_alarms_watch_the_metrics_of_the_monitor(account: Root) -> None:
    alarms = account.client("cloudwatch").describe_alarms(AlarmNamePrefix="recognition-staging-drift")["MetricAlarms"]
    empty = {"photos": drift.LEAST, "classes": {}, "confidence": {}, "objects": {}}
    assert {d["Value"] for a in alarms for d in a["Dimensions"] if d["Name"] == "Distribution"} == set(
        drift.drift(empty, empty)
    )
    assert {(a["Namespace"], a["MetricName"]) for a in alarms} == {("Recognition", "Drift")}
    (topic,) = account.client("sns").list_topics()["Topics"]
    assert all(a["AlarmActions"] == [topic["TopicArn"]] for a in alarms)
    assert account.client("sns").list_subscriptions()["Subscriptions"], "an alarm reaches an address"


@pytest.mark.parametrize(
    ("role", "action", "resource", "allowed"),
    [
        ("sagemaker-jobs", "s3:PutObject", "arn:aws:s3:::recognition-staging-sagemaker-123456789012/models/a", True),
        ("sagemaker-jobs", "s3:PutObject", "arn:aws:s3:::recognition-staging-weights-123456789012/a.pt", False),
        ("sagemaker", "s3:PutObject", "arn:aws:s3:::recognition-staging-sagemaker-123456789012/capture/a", True),
        ("sagemaker", "s3:PutObject", "arn:aws:s3:::recognition-staging-sagemaker-123456789012/drift/baseline/a", False),
        ("pipeline", "sagemaker:CreateModelPackage", "arn:aws:sagemaker:eu-central-1:123456789012:model-package-group/recognition-staging", False),
        ("pipeline", "sagemaker:UpdateModelPackage", "arn:aws:sagemaker:eu-central-1:123456789012:model-package/recognition-staging/1", False),
    ],
)  # fmt: skip
def test_who_may_what(account: Root, role: str, action: str, resource: str, allowed: bool) -> None:
    assert account.allows(role, action, resource) is allowed
