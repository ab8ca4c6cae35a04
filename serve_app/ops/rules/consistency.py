"""Rules about agreement: the overlay, the image and the Serve configuration must match in versions and keys."""

from __future__ import annotations

import re
from collections.abc import Iterator

from serve_app.ops import serve_config
from serve_app.ops.overlay import Overlay
from serve_app.ops.rendered import Finding, Rendered
from serve_app.settings import ROOT

IGNORED_KEYS = ("serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold")


def versions(overlay: Rendered) -> Iterator[Finding]:
    """All pods must run one image with the pinned Ray, and Ray's environment variables must be the measured ones."""
    if overlay.cluster["rayVersion"] != overlay.locked_ray:
        why = f"The image has Ray {overlay.locked_ray}, but rayVersion is {overlay.cluster['rayVersion']}"
        yield overlay.finding("rayVersion", why, f'set rayVersion: "{overlay.locked_ray}"')
    images = {pod["containers"][0]["image"] for pod in overlay.pods()}
    if len(images) > 1:
        why = "Head and workers run different images, and Ray rejects such workers"
        yield overlay.finding("image", why, "use the same image for both")
    if any(not re.search(r"@sha256:|:(?!latest$)[\w.-]+$", image) for image in images):
        why = "The image has no tag or the tag `latest`, whose content may change while the cluster runs"
        yield overlay.finding("image", why, "use a version tag, or better a digest")
    if any(overlay.env(pod) | overlay.VARIABLES != overlay.env(pod) for pod in overlay.pods()):
        why = "Ray runs without the environment variables that the measurements had"
        yield overlay.finding("env", why, "run `make manifests`")


def unknown_keys(overlay: Overlay) -> Iterator[Finding]:
    """Serve and KubeRay must know every key, because unknown keys have no effect."""
    try:
        serve_config.check(overlay.serve)
    except ValueError as error:
        yield overlay.finding("serveConfigV2", f"Serve rejects it: {error}", "compare with serve_config.yaml")
    for key in IGNORED_KEYS:
        if key in overlay.service:
            yield overlay.finding(key, f"KubeRay ignores {key} (kuberay#1685)", "remove it")


def probes(overlay: Rendered) -> Iterator[Finding]:
    """The image must contain the commands that KubeRay's probes run."""
    if "slim" in overlay.dockerfile and "wget" not in overlay.dockerfile:
        why = "KubeRay's probes call wget, which a slim image does not have, so no pod becomes ready"
        yield Finding(ROOT / "Dockerfile", 1, why, "add `apt-get install wget` to the Dockerfile")


RULES = (versions, unknown_keys, probes)
