"""Terraform's own tests, and all that moto speaks of AWS really applied, looked at with boto3, served from, destroyed."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from loadtests.service import config, free_port, running
from tests.conftest import ROOT
from tests.terraform.applied import DOMAIN, IMAGE, VARIABLES, Root, initialised
from tests.terraform.iam import matches

ALLOWED = "arn:aws:iam::123456789012:role/recognition-staging-service"
PIPELINE = "arn:aws:iam::123456789012:role/recognition-staging-pipeline"
FOREIGN = "arn:aws:iam::123456789012:role/somebody-else"


def test_terraforms_own_tests(tmp_path: Path) -> None:
    folder = initialised(tmp_path)
    ended = subprocess.run(["terraform", "test"], cwd=folder, capture_output=True, text=True, check=False)
    assert not ended.returncode, ended.stdout + ended.stderr
    assert "0 failed" in ended.stdout


def test_style() -> None:
    subprocess.run(["terraform", "fmt", "-check", "-recursive", str(ROOT / "terraform")], check=True)


def test_a_second_plan_changes_nothing(account: Root) -> None:
    account("plan", *VARIABLES, *account.targets, "-detailed-exitcode", "-input=false")


def made(account: Root, what: str) -> dict[str, Any]:
    """The bucket for weights or for access-logs."""
    (found,) = (one for one in account.made["aws_s3_bucket"] if f"-{what}-" in one["bucket"])
    return found


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
    bucket = made(account, "weights")
    policy = json.loads(account.client("s3").get_bucket_policy(Bucket=bucket["bucket"])["Policy"])
    context = {"aws:PrincipalArn": who, "aws:SecureTransport": "true"}
    assert matches(policy, "Deny", action, f"{bucket['arn']}/a.pt", context) is denied
    assert matches(policy, "Deny", action, f"{bucket['arn']}/a.pt", context | {"aws:SecureTransport": "false"})


@pytest.fixture(scope="module")
def bucket(account: Root) -> str:
    """Its name; without its policy from now on, since moto obeys `Deny` without looking at the condition."""
    name = str(made(account, "weights")["bucket"])
    account.client("s3").delete_bucket_policy(Bucket=name)
    return name


def test_the_bucket_keeps_encrypts_and_hides(account: Root, bucket: str) -> None:
    client, name = account.client("s3"), bucket
    assert client.get_bucket_versioning(Bucket=name)["Status"] == "Enabled"
    (rule,) = client.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"
    assert all(client.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"].values())
    first = client.put_object(Bucket=name, Key="a.pt", Body=b"one")["VersionId"]
    client.put_object(Bucket=name, Key="a.pt", Body=b"two")
    assert client.get_object(Bucket=name, Key="a.pt", VersionId=first)["Body"].read() == b"one"


def test_load_balancers_of_this_account_write_the_access_logs(account: Root) -> None:
    """Into the bucket that the overlays name, encrypted as load balancers can: with S3's own keys."""
    bucket, s3 = made(account, "access-logs"), account.client("s3")
    for overlay in ("staging", "production"):
        patch = (ROOT / "kuberay" / "overlays" / overlay / "account.yaml").read_text()
        name = (ROOT / "terraform" / f"{overlay}.tfvars").read_text().split('"')[1]
        assert re.search(rf"access_logs\.s3\.bucket={name}-access-logs-\d{{12}}$", patch, re.MULTILINE)
    assert bucket["bucket"] == "recognition-staging-access-logs-123456789012"
    assert account("output", "-raw", "access_logs") == bucket["bucket"]
    (rule,) = s3.get_bucket_encryption(Bucket=bucket["bucket"])["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    assert all(s3.get_public_access_block(Bucket=bucket["bucket"])["PublicAccessBlockConfiguration"].values())
    policy = json.loads(s3.get_bucket_policy(Bucket=bucket["bucket"])["Policy"])
    (allowed,) = (one for one in policy["Statement"] if one["Effect"] == "Allow")
    assert allowed["Principal"] == {"Service": "logdelivery.elasticloadbalancing.amazonaws.com"}
    assert (allowed["Action"], allowed["Resource"]) == ("s3:PutObject", f"{bucket['arn']}/AWSLogs/123456789012/*")


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
    assert account.allows(role, action, f"{made(account, 'weights')['arn']}/a.pt") is allowed


def trusts(policy: dict[str, Any], subject: str, ref: str = "refs/tags/v1.0.0") -> bool:
    host = "token.actions.githubusercontent.com"
    context = {f"{host}:aud": "sts.amazonaws.com", f"{host}:sub": subject, f"{host}:ref": ref}
    return matches(policy, "Allow", "sts:AssumeRoleWithWebIdentity", "", context)


@pytest.mark.parametrize(
    ("subject", "ref", "trusted"),
    [
        ("repo:example@1234567/image-recognition@7654321:environment:staging", "refs/tags/v1.0.0", True),
        ("repo:example@1234567/image-recognition@7654321:environment:production", "refs/tags/v1.0.0", True),
        ("repo:example@1234567/image-recognition@7654321:environment:staging", "refs/heads/main", True),
        ("repo:example@1234567/image-recognition@7654321:environment:staging", "refs/heads/other", False),
        ("repo:example@1234567/image-recognition@7654321:environment:other", "refs/tags/v1.0.0", False),
        ("repo:example@1234567/image-recognition@7654321:ref:refs/tags/v1.0.0", "refs/tags/v1.0.0", False),
        ("repo:example@1234567/image-recognition@7654321:pull_request", "refs/pull/1/merge", False),
        ("repo:example@1234567/other@7654322:environment:staging", "refs/tags/v1.0.0", False),
        ("repo:example@7654322/image-recognition@7654323:environment:staging", "refs/tags/v1.0.0", False),
        ("repo:example/image-recognition:environment:staging", "refs/tags/v1.0.0", False),
    ],
)
def test_whom_the_pipeline_trusts(account: Root, subject: str, ref: str, trusted: bool) -> None:
    role = account.client("iam").get_role(RoleName="recognition-staging-pipeline")["Role"]
    assert trusts(role["AssumeRolePolicyDocument"], subject, ref) is trusted


def planned_trust(account: Root, *changed: str) -> dict[str, Any]:
    """The pipeline's trust policy as an `apply` with these variables would change it."""
    changes = account.planned(*changed, "-target=aws_iam_role.pipeline")["resource_changes"]
    (after,) = (c["change"]["after"] for c in changes if c["address"] == "aws_iam_role.pipeline")
    policy: dict[str, Any] = json.loads(after["assume_role_policy"])
    return policy


def test_an_older_repository_is_trusted_by_its_names(account: Root) -> None:
    trust = planned_trust(account, "-var=github_repository=example/image-recognition")
    assert trusts(trust, "repo:example/image-recognition:environment:staging")
    assert not trusts(trust, "repo:example/image-recognition:ref:refs/tags/v1.0.0")


def test_production_trusts_what_a_person_approved(account: Root) -> None:
    """With production's environments: the tag alone, or staging's environment, is not enough."""
    (environments,) = re.findall(r"github_environments = (.*)", (ROOT / "terraform/production.tfvars").read_text())
    trust = planned_trust(account, f"-var=github_environments={environments}")
    repository = "repo:example@1234567/image-recognition@7654321"
    assert trusts(trust, f"{repository}:environment:production")
    assert not trusts(trust, f"{repository}:environment:staging")
    assert not trusts(trust, f"{repository}:ref:refs/tags/v1.0.0")


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


def test_the_firewall_logs_what_it_blocks_and_no_key(account: Root) -> None:
    (logging,) = account.made["aws_wafv2_web_acl_logging_configuration"]
    assert {one["single_header"][0]["name"] for one in logging["redacted_fields"]} == {"authorization", "x-api-key"}
    (chosen,) = logging["logging_filter"]
    (kept,) = chosen["filter"]
    actions = [condition["action_condition"][0]["action"] for condition in kept["condition"]]
    assert (chosen["default_behavior"], kept["behavior"], actions) == ("DROP", "KEEP", ["BLOCK"])


def test_tags_of_images_do_not_move(account: Root) -> None:
    (repository,) = account.client("ecr").describe_repositories()["repositories"]
    assert repository["imageTagMutability"] == "IMMUTABLE"
    assert repository["imageScanningConfiguration"]["scanOnPush"]


def test_no_rule_of_the_registry_deletes_a_signature(account: Root) -> None:
    """Signatures have no tag, or, made by an older cosign, one that begins with the image's digest."""
    policy = account.client("ecr").get_lifecycle_policy(repositoryName="recognition-staging")["lifecyclePolicyText"]
    for rule in json.loads(policy)["rules"]:
        assert rule["selection"]["tagStatus"] == "tagged"
        assert not any(fnmatch.fnmatch(f"sha256-{'a' * 64}.sig", tag) for tag in rule["selection"]["tagPatternList"])
        assert any(fnmatch.fnmatch("v1.0.0", tag) for tag in rule["selection"]["tagPatternList"]), "a release's tag"
        for overlay in ("staging", "production"):  # nor the copy of Fluent Bit, without which no pod starts
            content = yaml.safe_load((ROOT / "kuberay" / "overlays" / overlay / "kustomization.yaml").read_text())
            tag = next(image["newTag"] for image in content["images"] if image["name"] == "fluent-bit")
            assert not any(fnmatch.fnmatch(tag, pattern) for pattern in rule["selection"]["tagPatternList"])


def test_images_and_credentials_do_not_need_the_nat_gateway(account: Root) -> None:
    endpoints = account.client("ec2").describe_vpc_endpoints()["VpcEndpoints"]
    names = {e["ServiceName"].removeprefix("com.amazonaws.eu-central-1.") for e in endpoints}
    assert names == {"s3", "ecr.api", "ecr.dkr", "eks-auth"}


def test_the_name_has_a_certificate_and_leads_to_the_load_balancer(account: Root) -> None:
    """The address is only known after the first `apply`; here it is in VARIABLES."""
    (certificate,) = account.made["aws_acm_certificate"]
    made = account.client("acm").describe_certificate(CertificateArn=certificate["arn"])["Certificate"]
    assert (made["DomainName"], made["Status"]) == ("recognition-staging.example.com", "ISSUED")
    assert json.loads(account("output", "-json"))["certificate"]["value"] == certificate["arn"]
    (zone,) = account.client("route53").list_hosted_zones()["HostedZones"]
    records = account.client("route53").list_resource_record_sets(HostedZoneId=zone["Id"])["ResourceRecordSets"]
    found = {r["Name"]: r["AliasTarget"]["DNSName"] for r in records if "AliasTarget" in r}
    assert found == {"recognition-staging.example.com.": DOMAIN["load_balancer"]}


def test_alarms_watch_what_sagemaker_answers(account: Root) -> None:
    alarms = account.client("cloudwatch").describe_alarms(AlarmNamePrefix="recognition-staging-sagemaker")[
        "MetricAlarms"
    ]
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
    assert difference.pop("http_options") == {"host": "0.0.0.0", "port": 8080}
    ingress = difference["applications"][0]["deployments"][0]
    assert ingress.pop("ray_actor_options")["num_gpus"] > 0
    ingress |= {"num_replicas": 1}
    difference["applications"][0].setdefault("args", {})["weights"] = published
    monkeypatch.setenv("SERVE_CONFIG_DIFFERENCE", json.dumps(difference))
    monkeypatch.setenv("AWS_ENDPOINT_URL", account.endpoint)
    with running(config(free_port())) as service:
        url = service.url
        assert httpx.get(f"{url}/ping").status_code == 200
        answer = httpx.post(f"{url}/invocations", content=bus, headers={"Content-Type": "image/jpeg"}, timeout=60)
        assert answer.json()["images"][0]["results"]
        assert httpx.get(f"{url}/v1/models", timeout=60).json()["models"][0]["uri"] == published
        too_long = httpx.post(f"{url}/invocations", content=b"x" * 6_291_457, headers={"Content-Type": "image/jpeg"})
        assert too_long.status_code == 413


def test_all_of_it_can_be_destroyed(account: Root, bucket: str) -> None:
    """The last test of the file: the others need what it takes away."""
    client = account.client("s3")
    for one in client.list_object_versions(Bucket=bucket).get("Versions", []):
        client.delete_object(Bucket=bucket, Key=one["Key"], VersionId=one["VersionId"])
    account("destroy", *VARIABLES, "-auto-approve", "-input=false")
    assert "resources" not in json.loads(account("show", "-json")).get("values", {}).get("root_module", {})
