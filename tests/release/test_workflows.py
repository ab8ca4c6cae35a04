"""What linters of workflows do not see: that they name what exists, and that every shell step does what it says.

The clouds are programs that write down what they are told.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtests import s3_server
from serve_app.vision import sample_photos
from tests.conftest import ROOT, kubectl

GITHUB = ROOT / ".github"
FILES = sorted(GITHUB.glob("workflows/*.yml"))
ACTION = GITHUB / "actions" / "account" / "action.yml"
DIGEST = "sha256:" + "a" * 64
ROLE = "arn:aws:iam::111122223333:role/recognition-staging-pipeline"
REGISTRY = "111122223333.dkr.ecr.eu-central-1.amazonaws.com"
VALUES = {
    "steps.account.outputs.registry": REGISTRY,
    "steps.account.outputs.name": "recognition",
    "steps.staging.outputs.registry": "other.example",
    "steps.staging.outputs.name": "recognition-staging",
    "steps.account.outputs.bucket": s3_server.BUCKET,
    "needs.image.outputs.digest": DIGEST,
    "inputs.role": ROLE,
    "inputs.region": "eu-central-1",
    "inputs.candidate": "candidates/new.pt",
    "inputs.environment": "production",
    "github.token": "token",
}
FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >>"$LOG"
case "$(basename "$0") $*" in
  "aws ecr get-login-password") echo password;;
  "docker login"*) cat >>"$LOG";;
  "skopeo inspect"*) exit 1;;
  "docker inspect"*) printf '%s\\n' "other.example/recognition@sha256:0" "REGISTRY/recognition@DIGEST";;
esac
""".replace("REGISTRY", REGISTRY).replace("DIGEST", DIGEST)
AWS = f"""#!{sys.executable}
import sys, boto3
*_, source, target = sys.argv
bucket, _, key = source.removeprefix("s3://").partition("/")
boto3.client("s3").download_file(bucket, key, target)
"""


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    return content


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in FILES:
        for name, job in read(file)["jobs"].items():
            yield f"{file.stem}.{name}", job


def steps(job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = dict(jobs())[job]["steps"]
    return found


def runs() -> list[str]:
    every = [step for _, job in jobs() for step in job.get("steps", [])] + read(ACTION)["runs"]["steps"]
    return [step["run"] for step in every if "run" in step]


def filled(text: str) -> str:
    """With GitHub's expressions evaluated, as far as these steps have them."""
    return re.sub(r"\$\{\{ (.*?) \}\}", lambda found: VALUES[found[1]], text)


def perform(step: dict[str, Any], folder: Path, job: dict[str, Any] | None = None) -> str:
    """Runs a step as GitHub does; returns what was written to its outputs and its summary."""
    written = folder / "github"
    written.unlink(missing_ok=True)
    env = os.environ | {"GITHUB_OUTPUT": str(written), "GITHUB_STEP_SUMMARY": str(written)}
    env |= {"GITHUB_REF_NAME": "v1.2.3", "GITHUB_SHA": "0" * 40, "LOG": str(folder / "log")}
    env |= {"GITHUB_WORKFLOW_REF": "o/r/.github/workflows/release.yml@refs/tags/v1.2.3"}
    env |= {"PATH": f"{folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env |= {name: filled(value) for name, value in ((job or {}).get("env", {}) | step.get("env", {})).items()}
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    ended = subprocess.run(shell, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert not ended.returncode, ended.stdout + ended.stderr
    return written.read_text() if written.exists() else ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A runner: the checkout's tools and scripts, and programs that only write down what they are told."""
    for name in (".venv", ".github"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    for name in ("aws", "docker", "cosign", "skopeo", "gh"):
        program(tmp_path / "bin" / name, FAKE)
    return tmp_path


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize("file", [*FILES, ACTION], ids=lambda file: file.stem)
def test_every_action_is_pinned_to_a_commit_and_its_version_told(file: Path) -> None:
    for used in re.findall(r"^.*\buses: (.*)$", file.read_text(), re.MULTILINE):
        assert used.startswith("$/") or re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used


def test_one_version_of_each_action() -> None:
    used = {line for file in [*FILES, ACTION] for line in re.findall(r"uses: (\S+@\S+)", file.read_text())}
    assert len(used) == len({line.split("@")[0] for line in used})


def test_jobs_have_few_rights_and_little_time() -> None:
    for file in FILES:
        assert read(file)["permissions"] == {}
        assert read(file)["concurrency"]
        assert read(file)["defaults"]["run"]["shell"] == "bash", "with pipefail"
    for name, job in jobs():
        assert job.get("timeout-minutes", 0) > 0 or "uses" in job, name
        writes = {right for right, level in job["permissions"].items() if level != "read"}
        assert writes <= ({"contents"} if name == "release.publish" else {"id-token"}), name


def test_nobody_but_releases_and_weights_may_ask_for_a_role() -> None:
    asking = {name for name, job in jobs() if "id-token" in job["permissions"]}
    assert {name.split(".")[0] for name in asking} == {"release", "weights"}


def test_a_role_trusts_the_environments_of_the_jobs_that_ask_for_it() -> None:
    trusted = {}
    for name in ("staging", "production"):
        variables = (ROOT / "terraform" / f"{name}.tfvars").read_text()
        (found,) = re.findall(r"^github_environments = (\[.*?\])", variables, re.MULTILINE)
        trusted[name] = set(json.loads(found))
    asked: dict[str, set[str]] = {"staging": set(), "production": set()}
    for name, job in jobs():
        for role in re.findall(r"vars\.(\w+)_ROLE", json.dumps(job)) if name != "weights.weights" else []:
            asked[role.lower()].add(job["environment"])
    assert asked == trusted


def test_production_waits_for_a_person() -> None:
    """Whoever approves is in GitHub's settings: here, that nothing reaches production's role beside that."""
    asking = {name: job["environment"] for name, job in jobs() if "PRODUCTION_ROLE" in json.dumps(job)}
    assert asking == {"release.production": "production", "weights.weights": "${{ inputs.environment }}"}
    (role,) = (s["with"]["role"] for s in steps("weights.weights") if "role" in s.get("with", {}))
    assert role == "${{ inputs.environment == 'production' && vars.PRODUCTION_ROLE || vars.STAGING_ROLE }}"
    assert "staging" in dict(jobs())["release.production"]["needs"]


def test_no_secret_but_the_key_of_the_environment_that_is_deployed_to() -> None:
    text = "".join(file.read_text() for file in [*FILES, ACTION])
    assert set(re.findall(r"secrets\.(\w+)", text)) == {"API_KEY"}
    sending = {name: job["environment"] for name, job in jobs() if "secrets.API_KEY" in json.dumps(job)}
    assert sending == {"release.staging": "staging", "release.production": "production"}
    for name in re.findall(r"(?:vars|secrets)\.(\w+)", text):
        assert f"`{name}`" in (ROOT / "CONTRIBUTING.md").read_text(), name


def test_every_make_target_exists() -> None:
    asked = {target for run in runs() for target in re.findall(r"^make (.*)$", run, re.MULTILINE)}
    assert len(asked) > 4
    for targets in asked:
        typed = ["make", "--dry-run", *(word for word in targets.split() if "=" not in word)]
        subprocess.run(typed, cwd=ROOT, check=True, capture_output=True)


def test_every_script_exists_and_may_be_run() -> None:
    named = {name for run in runs() for name in re.findall(r"\.github/[\w./-]+", run)}
    assert {Path(name).name for name in named} == {path.name for path in GITHUB.glob("*.[ps][yh]")}
    for name in named:
        assert name.endswith(".py") or os.access(ROOT / name, os.X_OK)


def test_the_names_are_terraforms(folder: Path) -> None:
    (step,) = (step for step in read(ACTION)["runs"]["steps"] if "run" in step)
    told = dict(line.split("=") for line in perform(step, folder).split())
    assert told == {
        "name": "recognition-staging",
        "registry": REGISTRY,
        "bucket": "recognition-staging-weights-111122223333",
    }
    terraform = "".join(file.read_text() for file in (ROOT / "terraform").glob("*.tf"))
    for line in ('name                 = "${var.name}-pipeline"', 'bucket = "${var.name}-weights-${local.account}"'):
        assert line in terraform
    for kind in ("aws_ecr_repository", "aws_eks_cluster"):
        assert re.search(rf'resource "{kind}" "this" {{\n  name +=\s+var\.name\n', terraform)


def test_what_a_release_tells_the_clouds(folder: Path) -> None:
    told: dict[str, list[str]] = {}
    output = ""
    for job in ("image", "sign", "production"):
        for step in steps(f"release.{job}"):
            if re.search(r"\b(aws ecr|docker|cosign|skopeo)\b", step.get("run", "")):
                output += perform(step, folder)
        told[job] = (folder / "log").read_text().splitlines()
        (folder / "log").unlink()
    here, there = f"{REGISTRY}/recognition", "other.example/recognition-staging"
    assert output == f"digest={DIGEST}\n"
    assert told["image"][-3:-1] == [
        f"docker tag image-recognition:release {here}:v1.2.3",
        f"docker push {here}:v1.2.3",
    ]
    login = ["aws ecr get-login-password", f"docker login --username AWS --password-stdin {REGISTRY}", "password"]
    assert sorted(told["sign"][:3]) == sorted(login)
    signed = [
        f"cosign sign --yes {here}@{DIGEST}",
        f"cosign attest --yes --type cyclonedx --predicate sbom-image.json {here}@{DIGEST}",
    ]
    assert told["sign"][3:] == signed
    assert told["production"][-2:] == signed
    assert told["production"][-4:-2] == [
        f"skopeo inspect --raw docker://{here}@{DIGEST}",
        f"skopeo copy --preserve-digests docker://{there}@{DIGEST} docker://{here}:v1.2.3",
    ]
    identity = "https://github.com/o/r/.github/workflows/release.yml@refs/tags/v1.2.3"
    (verified,) = (line for line in told["production"] if line.startswith("cosign verify"))
    assert verified.startswith(f"cosign verify {there}@{DIGEST} ")
    assert verified.endswith(f"--certificate-identity {identity}")


def test_a_release_that_runs_again_does_not_push_its_tag_again(folder: Path) -> None:
    program(folder / "bin" / "skopeo", FAKE.replace('"skopeo inspect"*) exit 1;;', ""))
    (step,) = (step for step in steps("release.production") if step.get("name", "").startswith("Copy"))
    perform(step, folder)
    assert "skopeo copy" not in (folder / "log").read_text()


def test_what_is_published(folder: Path) -> None:
    (step,) = (step for step in steps("release.publish") if step.get("name") == "Release on GitHub")
    perform(step, folder)
    assert (folder / "log").read_text() == (
        "gh release create v1.2.3 --verify-tag --notes-file notes.md production.yaml sbom-image.json\n"
    )


def test_manifests_take_the_image_of_a_release(tmp_path: Path) -> None:
    """By the target that the workflow calls, in a copy of the checkout."""
    kubectl()
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    copy = ["xargs", "-0", "cp", "--parents", "--target-directory", str(tmp_path)]
    subprocess.run(copy, cwd=ROOT, input=tracked, check=True)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    image = f"{REGISTRY}/recognition@{DIGEST}"
    done = ["--assume-old=.venv/serve", "--assume-old=.venv/dev", "--assume-old=.venv/checkov/bin/checkov"]
    (step,) = (step for step in steps("release.staging") if step.get("name") == "Render")
    command = step["run"].replace("make ", f"make {' '.join(done)} ").replace("$IMAGE", image)
    ended = subprocess.run(["bash", "-e", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert not ended.returncode, ended.stdout + ended.stderr
    for name in ("staging", "production"):
        objects = yaml.safe_load_all((tmp_path / "build" / f"{name}.yaml").read_text())
        (cluster,) = (o["spec"]["rayClusterConfig"] for o in objects if o["kind"] == "RayService")
        groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
        found = {c["name"]: c["image"] for group in groups for c in group["template"]["spec"]["containers"]}
        assert {found["ray-head"], found["ray-worker"]} == {image}
        assert list(found.values()).count(image) == 2, "and nothing else"


def test_weights_are_held_against_those_before_and_published(folder: Path) -> None:
    """All shell steps of weights.yml, with an S3 on loopback."""
    program(folder / "bin" / "aws", AWS)
    job = dict(jobs())["weights.weights"] | {"env": {"NAME": "road.pt", "CANDIDATE": "candidates/new.pt"}}
    weights = [sys.executable, "-m", "serve_app", "weights"]
    with s3_server.bucket() as store:
        os.environ["AWS_ENDPOINT_URL"] = store.endpoint  # what `bucket` takes back
        old, golden = f"s3://{s3_server.BUCKET}/road.pt", str(folder / "before.json")
        default = str(ROOT / "models" / "default.pt")
        subprocess.run([*weights, "golden", default, *map(str, sample_photos.files()), "--out", golden], check=True)
        subprocess.run([*weights, "publish", default, old, "--golden", golden], check=True)
        store.client.upload_file(default, s3_server.BUCKET, "candidates/new.pt")
        told = "".join(
            perform(step, folder, job) for step in job["steps"] if "aws" in str(step) or "weights" in str(step)
        )
        versions = store.client.list_object_versions(Bucket=s3_server.BUCKET, Prefix="road.pt")["Versions"]
    assert len([v for v in versions if v["Key"] == "road.pt"]) == 2
    assert json.loads((folder / "golden.json").read_text())["photos"] == json.loads(Path(golden).read_text())["photos"]
    assert "golden photos: 2" in told
    assert re.search(r"s3://weights/road\.pt\?versionId=\S+&sha256=\S+", told), "the address to paste"
