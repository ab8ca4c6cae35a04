"""terraform/ applied to an emulator of AWS (moto), as far as that speaks it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest

from loadtests import s3_server
from tests.conftest import ROOT
from tests.terraform.iam import matches

# What moto does not know, or forgets the half of; tests/plan.tftest.hcl has it, with a provider that makes its answers up.
MOCKED = {
    "aws_appautoscaling_policy",
    "aws_appautoscaling_target",
    "aws_budgets_budget",
    "aws_eks_access_entry",
    "aws_eks_access_policy_association",
    "aws_eks_cluster",
    "aws_eks_pod_identity_association",
    "aws_elasticache_replication_group",
    "aws_elasticache_subnet_group",
    "aws_s3_bucket_lifecycle_configuration",
    "aws_s3_object",  # moto obeys `Deny` of a bucket's policy without looking at the condition
    "aws_sagemaker_endpoint",
    "aws_sagemaker_endpoint_configuration",
    "aws_sagemaker_model_package_group",  # moto cannot delete it
}
DEPENDENT = {"aws_vpc_security_group_ingress_rule.redis"}  # on one of them
IMAGE = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/recognition-staging:1.0.0"
SAGEMAKER = {"image": IMAGE, "instance_type": "ml.g5.xlarge", "min_instances": 2, "max_instances": 6}
DOMAIN = {
    "name": "recognition-staging.example.com",
    "zone": "example.com",
    "load_balancer": "k8s-1234.eu-central-1.elb.amazonaws.com",
}
VARIABLES = [
    "-var-file=staging.tfvars",
    "-var=redis_password=0123456789abcdef",
    "-var=managed_prometheus=true",
    f"-var=sagemaker={json.dumps(SAGEMAKER)}",
    f"-var=domain={json.dumps(DOMAIN)}",
    "-var=sagemaker_ami=al2-ami-sagemaker-inference-gpu-3-1",  # provider 5 does not know the default
]
MOTO = """
terraform {
  backend "local" {}
}

provider "aws" {
  s3_use_path_style           = true
  skip_credentials_validation = true
  # A connection to moto may be closed while its answer is read; seen once in the whole suite.
  # Moto knows no quotas, so the check of them fails however often it is asked: not the default 25 times.
  max_retries = 4
}
"""


class Root:
    """A copy of terraform/, initialised, which speaks to moto."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.folder, self.endpoint = folder, endpoint
        self.targets: list[str] = []
        self.plan: dict[str, Any] = {}  # of everything, also of what moto does not speak
        self.made: dict[str, list[dict[str, Any]]] = {}  # by type, as Terraform's state has it
        self.env = os.environ | s3_server.ENV | {"AWS_ENDPOINT_URL": endpoint, "TF_IN_AUTOMATION": "1"}

    def __call__(self, *typed: str) -> str:
        """Terraform's output."""
        ended = subprocess.run(
            ["terraform", *typed], cwd=self.folder, env=self.env, capture_output=True, text=True, check=False
        )
        assert not ended.returncode, f"terraform {' '.join(typed)}:\n{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
        return ended.stdout

    def planned(self, *typed: str) -> dict[str, Any]:
        """The plan that these arguments of `plan` make."""
        self("plan", *VARIABLES, *typed, "-out=planned.tfplan", "-input=false")
        content: dict[str, Any] = json.loads(self("show", "-json", "planned.tfplan"))
        return content

    def allows(self, role: str, action: str, resource: str) -> bool:
        """Whether the policies of a role of ours, named without the prefix, allow the action on the resource."""
        iam, name = self.client("iam"), f"recognition-staging-{role}"
        documents = [
            iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
            for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]
        ]
        return any(matches(document, "Allow", action, resource, {}) for document in documents)

    def client(self, service: str) -> Any:
        return boto3.Session(region_name="eu-central-1").client(service, endpoint_url=self.endpoint)


def initialised(folder: Path, override: str = "") -> Path:
    """A copy of the root, with the providers of the mirror that TF_PLUGIN_DIR names, or the registry's."""
    (folder / "test_override.tf").write_text(override)
    mirror = os.environ.get("TF_PLUGIN_DIR")
    for path in (ROOT / "terraform").glob("*"):
        if path.is_file() or path.name == "tests":
            (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
    typed = ["terraform", "init", "-input=false", *([] if override else ["-backend=false"])]
    typed += [f"-plugin-dir={mirror}"] if mirror else []
    ended = subprocess.run(typed, cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode and not mirror and "registry" in ended.stderr:
        pytest.skip(f"no provider: {ended.stderr[-300:]}")
    assert not ended.returncode, ended.stderr
    return folder


@contextmanager
def applied(folder: Path) -> Iterator[Root]:
    """All of terraform/ but MOCKED, in a fresh moto."""
    initialised(folder, MOTO)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")  # read when moto starts
        root = Root(folder, stack.enter_context(s3_server.bucket()).endpoint)
        root.client("route53").create_hosted_zone(Name=DOMAIN["zone"], CallerReference="test")
        root.plan = root.planned()
        planned = root.plan["resource_changes"]
        wanted = {c["address"].split("[")[0] for c in planned if c["type"] not in MOCKED and c["mode"] == "managed"}
        root.targets = [f"-target={address}" for address in sorted(wanted - DEPENDENT)]
        root("apply", *VARIABLES, *root.targets, "-auto-approve", "-input=false")
        for one in json.loads(root("show", "-json"))["values"]["root_module"]["resources"]:
            root.made.setdefault(one["type"], []).append(one["values"])
        yield root
