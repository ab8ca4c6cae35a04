"""The Model Registry: what enters it, with moto as SageMaker and S3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from loadtests import s3_server
from models import register
from serve_app.__main__ import main
from serve_app.vision import sample_photos
from serve_app.weights.golden_set import Golden
from serve_app.weights.identity import BUNDLED

GROUP = "recognition-staging"
SETTINGS = {"http_options": {"port": 8080}, "applications": [{"name": "recognition", "args": {"weights": "auto"}}]}


@pytest.fixture(scope="module", autouse=True)
def aws() -> Iterator[None]:
    with s3_server.bucket() as bucket, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", bucket.endpoint)
        boto3.client("sagemaker").create_model_package_group(ModelPackageGroupName=GROUP)
        yield


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """As Terraform's output."""
    file = tmp_path / "package.json"
    environment = {"SERVE_CONFIG_DIFFERENCE": json.dumps(SETTINGS), "NVIDIA_VISIBLE_DEVICES": "all"}
    file.write_text(
        json.dumps({"ModelPackageGroupName": GROUP, "Image": "registry/image:1", "Environment": environment})
    )
    return file


def golden(folder: Path) -> Path:
    file = folder / "golden.json"
    assert main(["weights", "golden", str(BUNDLED), *map(str, sample_photos.files()), "--out", str(file)]) == 0
    return file


def published(key: str, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    capsys.readouterr()
    assert main(["weights", "publish", str(BUNDLED), f"s3://{s3_server.BUCKET}/{key}.pt", *more]) == 0
    return capsys.readouterr().out.strip()


def test_weights_that_pass_wait_for_an_approval(
    template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = published("good", capsys, "--golden", str(golden(tmp_path)))
    assert register.main([str(template), address]) == 0
    arn = capsys.readouterr().out.strip()
    made = boto3.client("sagemaker").describe_model_package(ModelPackageName=arn)
    assert made["ModelPackageGroupName"] == GROUP
    assert made["ModelApprovalStatus"] == "PendingManualApproval"
    assert made["CustomerMetadataProperties"]["golden_photos"] == "2"
    (container,) = made["InferenceSpecification"]["Containers"]
    assert container["Image"] == "registry/image:1"
    assert container["Environment"]["NVIDIA_VISIBLE_DEVICES"] == "all"
    difference = json.loads(container["Environment"]["SERVE_CONFIG_DIFFERENCE"])
    assert difference["applications"][0]["args"]["weights"] == address
    assert "versionId=" in address


def registered() -> int:
    return len(boto3.client("sagemaker").list_model_packages(ModelPackageGroupName=GROUP)["ModelPackageSummaryList"])


def test_weights_without_a_golden_set_are_refused(template: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, address = registered(), published("bare", capsys)
    assert register.main([str(template), address]) == 1
    assert "without a golden set" in capsys.readouterr().err
    assert registered() == before


def test_weights_that_fail_their_golden_set_are_refused(
    template: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`publish` would not publish them, so here it does not look."""
    file = golden(tmp_path)
    content = Golden.model_validate_json(file.read_bytes()).model_dump(mode="json")
    for photo in content["photos"]:
        for one in photo["objects"]:
            one["name"] = "truck"
    file.write_text(json.dumps(content))
    with monkeypatch.context() as patch:
        patch.setattr("serve_app.weights.golden_set.check", lambda *_: None)
        address = published("bad", capsys, "--golden", str(file))
    before = registered()
    assert register.main([str(template), address]) == 1
    assert "golden set:" in capsys.readouterr().err
    assert registered() == before
