"""Terraform's own tests, and all that moto speaks of AWS really applied, looked at with boto3, served from, destroyed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loadtests.service import config, free_port, running
from tests.conftest import ROOT
from tests.terraform.applied import IMAGE, VARIABLES, Root, applied, initialised
from tests.terraform.iam import matches

ALLOWED = "arn:aws:iam::123456789012:role/recognition-staging-service"
PIPELINE = "arn:aws:iam::123456789012:role/recognition-staging-pipeline"
FOREIGN = "arn:aws:iam::123456789012:role/somebody-else"


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    if not shutil.which("terraform"):
        pytest.skip("no terraform")


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    with applied(tmp_path_factory.mktemp("terraform")) as root:
        yield root


def test_terraforms_own_tests(tmp_path: Path) -> None:
    folder = initialised(tmp_path)
    ended = subprocess.run(["terraform", "test"], cwd=folder, capture_output=True, text=True, check=False)
    assert not ended.returncode, ended.stdout + ended.stderr
    assert "0 failed" in ended.stdout


def test_style() -> None:
    subprocess.run(["terraform", "fmt", "-check", "-recursive", str(ROOT / "terraform")], check=True)


def test_a_second_plan_changes_nothing(account: Root) -> None:
    account("plan", *VARIABLES, *account.targets, "-detailed-exitcode", "-input=false")


@pytest.mark.parametrize(
    ("who", "action", "denied"),
    [
        (ALLOWED, "s3:GetObjectVersion", False),
        (ALLOWED, "s3:PutObject", True),
        (PIPELINE, "s3:PutObject", False),
        (PIPELINE, "s3:DeleteObjectVersion", False),
        (FOREIGN, "s3:GetObjectVersion", True),
        (FOREIGN, "s3:PutObject", True),
        (FOREIGN, "s3:DeleteObjectVersion", True),
    ],
)
def test_who_the_bucket_denies(account: Root, who: str, action: str, denied: bool) -> None:
    (bucket,) = account.made["aws_s3_bucket"]
    policy = json.loads(account.client("s3").get_bucket_policy(Bucket=bucket["bucket"])["Policy"])
    context = {"aws:PrincipalArn": who, "aws:SecureTransport": "true"}
    assert matches(policy, "Deny", action, f"{bucket['arn']}/a.pt", context) is denied
    assert matches(policy, "Deny", action, f"{bucket['arn']}/a.pt", context | {"aws:SecureTransport": "false"})


@pytest.fixture(scope="module")
def bucket(account: Root) -> str:
    """Its name; without its policy from now on, since moto obeys `Deny` without looking at the condition."""
    (made,) = account.made["aws_s3_bucket"]
    account.client("s3").delete_bucket_policy(Bucket=made["bucket"])
    return str(made["bucket"])


def test_the_bucket_keeps_encrypts_and_hides(account: Root, bucket: str) -> None:
    client, name = account.client("s3"), bucket
    assert client.get_bucket_versioning(Bucket=name)["Status"] == "Enabled"
    (rule,) = client.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"
    assert all(client.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"].values())
    first = client.put_object(Bucket=name, Key="a.pt", Body=b"one")["VersionId"]
    client.put_object(Bucket=name, Key="a.pt", Body=b"two")
    assert client.get_object(Bucket=name, Key="a.pt", VersionId=first)["Body"].read() == b"one"


@pytest.mark.parametrize(
    ("role", "action", "allowed"),
    [
        ("service", "s3:GetObjectVersion", True),
        ("service", "s3:PutObject", False),
        ("service", "ecr:PutImage", False),
        ("pipeline", "s3:PutObject", True),
        ("pipeline", "s3:DeleteObjectVersion", False),
    ],
)
def test_what_the_roles_allow(account: Root, role: str, action: str, allowed: bool) -> None:
    iam, (bucket,) = account.client("iam"), account.made["aws_s3_bucket"]
    name = f"recognition-staging-{role}"
    documents = [
        iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
        for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]
    ]
    assert any(matches(d, "Allow", action, f"{bucket['arn']}/a.pt", {}) for d in documents) is allowed


@pytest.mark.parametrize(
    ("subject", "trusted"),
    [
        ("repo:example/image-recognition:ref:refs/heads/main", True),
        ("repo:example/image-recognition:ref:refs/tags/v1.0.0", True),
        ("repo:example/image-recognition:pull_request", False),
        ("repo:example/image-recognition:ref:refs/heads/other", False),
        ("repo:example/other:ref:refs/heads/main", False),
    ],
)
def test_whom_the_pipeline_trusts(account: Root, subject: str, trusted: bool) -> None:
    trust = account.client("iam").get_role(RoleName="recognition-staging-pipeline")["Role"]["AssumeRolePolicyDocument"]
    host = "token.actions.githubusercontent.com"
    context = {f"{host}:aud": "sts.amazonaws.com", f"{host}:sub": subject}
    assert matches(trust, "Allow", "sts:AssumeRoleWithWebIdentity", "", context) is trusted


def test_private_subnets_leave_by_nat_and_public_ones_by_the_gateway(account: Root) -> None:
    ec2, (vpc,) = account.client("ec2"), account.made["aws_vpc"]
    tables = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc["id"]]}])["RouteTables"]
    way = {}
    for table in tables:
        default = [r for r in table["Routes"] if r.get("DestinationCidrBlock") == "0.0.0.0/0"]
        for association in table["Associations"]:
            if "SubnetId" in association:
                way[association["SubnetId"]] = "nat" if default[0].get("NatGatewayId") else default[0]["GatewayId"][:3]
    subnets = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc["id"]]}])["Subnets"]
    names = {s["SubnetId"]: {t["Key"]: t["Value"] for t in s["Tags"]} for s in subnets}
    assert len({s["AvailabilityZone"] for s in subnets}) == 3
    assert len(subnets) == 6
    for subnet, tags in names.items():
        assert way[subnet] == ("nat" if "kubernetes.io/role/internal-elb" in tags else "igw")
    assert len(ec2.describe_nat_gateways()["NatGateways"]) == 1, "staging has one for all zones"


def test_the_firewall_counts_large_bodies_and_blocks_the_rest(account: Root) -> None:
    waf = account.client("wafv2")
    (found,) = waf.list_web_acls(Scope="REGIONAL")["WebACLs"]
    rules = waf.get_web_acl(Name=found["Name"], Scope="REGIONAL", Id=found["Id"])["WebACL"]["Rules"]
    groups = {r["Name"]: r["Statement"].get("ManagedRuleGroupStatement") for r in rules}
    assert groups.keys() == {
        "requests-per-ip",
        "AWSManagedRulesAmazonIpReputationList",
        "AWSManagedRulesCommonRuleSet",
        "AWSManagedRulesKnownBadInputsRuleSet",
    }
    common = groups["AWSManagedRulesCommonRuleSet"]
    counted = {o["Name"] for o in common["RuleActionOverrides"] if list(o["ActionToUse"]) == ["Count"]}
    body = {"CrossSiteScripting", "EC2MetaDataSSRF", "GenericLFI", "GenericRFI", "SizeRestrictions"}
    assert counted == {f"{rule}_BODY" for rule in body}, "a photo is larger than 8 KB, and its XMP begins with <?"
    (limit,) = (r for r in rules if r["Name"] == "requests-per-ip")
    assert limit["Action"]["Block"]["CustomResponse"]["ResponseCode"] == 429


def test_tags_of_images_do_not_move(account: Root) -> None:
    (repository,) = account.client("ecr").describe_repositories()["repositories"]
    assert repository["imageTagMutability"] == "IMMUTABLE"
    assert repository["imageScanningConfiguration"]["scanOnPush"]


def test_alarms_watch_what_sagemaker_answers(account: Root) -> None:
    alarms = account.client("cloudwatch").describe_alarms()["MetricAlarms"]
    assert {a["MetricName"] for a in alarms} == {"Invocation5XXErrors", "ModelLatency"}
    watched = [{d["Name"]: d["Value"] for d in a["Dimensions"]} for a in alarms]
    assert watched == [{"EndpointName": "recognition-staging", "VariantName": "all"}] * 2


@pytest.fixture(scope="module")
def published(account: Root, bucket: str) -> str:
    """The address that the command in Terraform's output prints."""
    typed = json.loads(account("output", "-json"))["publish"]["value"].split()
    assert typed[-1] == f"s3://{bucket}/default.pt"
    made = subprocess.run(
        [f"{ROOT}/.venv/bin/python", *typed[1:]], cwd=ROOT, env=account.env, capture_output=True, text=True, check=False
    )
    assert not made.returncode, made.stderr
    return made.stdout.split()[-1]


def test_the_container_serves_the_buckets_weights_as_sagemaker_starts_it(
    account: Root, published: str, monkeypatch: pytest.MonkeyPatch, bus: bytes
) -> None:
    """With the environment that the model has in AWS, less the GPU, and with weights from the bucket."""
    sagemaker = account.client("sagemaker")
    (made,) = sagemaker.list_models()["Models"]
    container = sagemaker.describe_model(ModelName=made["ModelName"])["PrimaryContainer"]
    assert container["Image"] == IMAGE
    assert len(container["Environment"]["SERVE_CONFIG_DIFFERENCE"]) <= 1024, "SageMaker's limit"
    assert container["Environment"]["NVIDIA_VISIBLE_DEVICES"] == "all"
    difference = json.loads(container["Environment"]["SERVE_CONFIG_DIFFERENCE"])
    assert difference["http_options"] == {"host": "0.0.0.0", "port": 8080}
    ingress = difference["applications"][0]["deployments"][0]
    assert ingress.pop("ray_actor_options")["num_gpus"] > 0
    ingress |= {"num_replicas": 1}
    difference["applications"][0].setdefault("args", {})["weights"] = published
    difference["http_options"] = {"port": free_port()}
    monkeypatch.setenv("SERVE_CONFIG_DIFFERENCE", json.dumps(difference))
    monkeypatch.setenv("AWS_ENDPOINT_URL", account.endpoint)
    with running(config(1)) as service:
        url = f"http://127.0.0.1:{difference['http_options']['port']}"
        assert httpx.get(f"{url}/ping").status_code == 200
        answer = httpx.post(f"{url}/invocations", content=bus, headers={"Content-Type": "image/jpeg"}, timeout=60)
        assert answer.json()["images"][0]["results"]
        assert httpx.get(f"{url}/v1/models", timeout=60).json()["models"][0]["uri"] == published
        too_long = httpx.post(f"{url}/invocations", content=b"x" * 6_291_457, headers={"Content-Type": "image/jpeg"})
        assert too_long.status_code == 413
        assert any(f":{difference['http_options']['port']}" in line for line in service.lines)


def test_all_of_it_can_be_destroyed(account: Root, bucket: str) -> None:
    """The last test of the file: the others need what it takes away."""
    client = account.client("s3")
    for one in client.list_object_versions(Bucket=bucket).get("Versions", []):
        client.delete_object(Bucket=bucket, Key=one["Key"], VersionId=one["VersionId"])
    account("destroy", *VARIABLES, "-auto-approve", "-input=false")
    assert "resources" not in json.loads(account("show", "-json")).get("values", {}).get("root_module", {})
