"""`python -m models.register`: enters published weights in SageMaker's Model Registry, if they pass their golden set.

    weights publish --golden ─► s3://… ─► register: loads and tests them as a Detector does ─► package, not yet approved

SageMaker makes an endpoint only from a package that a person approved. The package contains no weights: it is the image
and its environment, with the pinned address of the weights.

    terraform output -json sagemaker_package > package.json
    python -m models.register package.json 's3://BUCKET/KEY.pt?versionId=…&sha256=…'
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import boto3

from serve_app.errors import WeightsError, WrongWeights
from serve_app.settings import AppSettings
from serve_app.weights import loader
from serve_app.weights.identity import Pinned

LONGEST = 1024  # characters of an environment variable's value that SageMaker accepts


def checked(uri: str) -> tuple[Pinned, int]:
    """The weights after every check of a service start, and the number of photos in their golden set.

    Raises WeightsError, also when they have no golden set.
    """
    settings = AppSettings()
    pinned = loader.pin(uri, settings)
    photos = len(pinned.manifest.golden.photos) if pinned.manifest and pinned.manifest.golden else 0
    if not photos:
        raise WrongWeights(f"{uri} was published without a golden set: publish it again with --golden")
    get = partial(loader.fetch, settings=settings)
    loader.load(
        pinned.uri, get, settings=settings, size=pinned.image_size, task=pinned.task, device="cpu", batch_sizes={1}
    )
    return pinned, photos


def package(template: dict[str, Any], pinned: Pinned, photos: int) -> dict[str, Any]:
    """The arguments of CreateModelPackage. `template` is Terraform's output `sagemaker_package`.

    Raises WrongWeights when the settings become too long for SageMaker.
    """
    environment = dict(template["Environment"])
    difference = json.loads(environment["SERVE_CONFIG_DIFFERENCE"])
    difference["applications"][0]["args"]["weights"] = pinned.uri
    environment["SERVE_CONFIG_DIFFERENCE"] = json.dumps(difference, separators=(",", ":"))
    if len(environment["SERVE_CONFIG_DIFFERENCE"]) > LONGEST:
        raise WrongWeights(f"the settings in sagemaker.yaml have more than {LONGEST} characters with {pinned.uri}")
    return {
        "ModelPackageGroupName": template["ModelPackageGroupName"],
        "ModelApprovalStatus": "PendingManualApproval",
        "InferenceSpecification": {
            "Containers": [{"Image": template["Image"], "Environment": environment}],
            "SupportedContentTypes": ["image/jpeg", "image/png", "application/json"],
            "SupportedResponseMIMETypes": ["application/json"],
        },
        "CustomerMetadataProperties": {"sha256": pinned.sha256, "golden_photos": str(photos)},
    }


def main(argv: list[str] | None = None) -> int:
    """Registers, prints the package's ARN, and returns the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("template", type=Path, metavar="package.json", help="Terraform's output sagemaker_package")
    options.add_argument("uri", metavar="s3://BUCKET/KEY.pt?…", help="the address that `weights publish` printed")
    args = options.parse_args(argv)
    try:
        arguments = package(json.loads(args.template.read_text()), *checked(args.uri))
    except WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(boto3.client("sagemaker").create_model_package(**arguments)["ModelPackageArn"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
