"""The part of each Kubernetes overlay that is generated: Serve's configuration, Ray's switches, dashboards and alerts.

`kuberay/overlays/*/serve.yaml` says what differs from serve_config.yaml; both, merged, become `spec.serveConfigV2`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from serve_app import configuration, monitoring, switches
from serve_app.weights import ROOT

OVERLAYS = ROOT / "kuberay" / "overlays"
GENERATED = "generated.yaml"
CONTAINERS = (
    "/spec/rayClusterConfig/headGroupSpec/template/spec/containers/0",
    "/spec/rayClusterConfig/workerGroupSpecs/0/template/spec/containers/0",
)


class _Text(str):
    """Written as a block, so that a difference of two versions can be read."""


class _Dumper(yaml.SafeDumper):
    """Without anchors: Kustomize reads them, people do not like to."""

    def ignore_aliases(self, _data: object) -> bool:
        """All."""
        return True


_Dumper.add_representer(_Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|"))


def overlays() -> list[Path]:
    """Their folders."""
    return sorted(path.parent for path in OVERLAYS.glob("*/kustomization.yaml"))


def serve_config(overlay: Path) -> dict[str, Any]:
    """The overlay's Serve configuration. Raises ValueError for what Serve would drop or refuse."""
    difference = yaml.safe_load((overlay / "serve.yaml").read_text())
    content: dict[str, Any] = configuration.merged(yaml.safe_load((ROOT / "serve_config.yaml").read_text()), difference)
    configuration.check(content)
    return content


def patch(overlay: Path) -> list[dict[str, Any]]:
    """JSON 6902: the Serve configuration, and the environment of the head's and the workers' Ray."""
    # On a cluster everything is Linux, whatever this runs on.
    environment = switches.SWITCHES | {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
    env = [{"name": name, "value": _Text(value) if "\n" in value else value} for name, value in environment.items()]
    config = _Text(yaml.safe_dump(serve_config(overlay), sort_keys=False, width=120))
    put = [{"op": "add", "path": "/spec/serveConfigV2", "value": config}]
    return put + [{"op": "add", "path": f"{at}/env", "value": env} for at in CONTAINERS]


def write() -> list[Path]:
    """Writes `generated.yaml` of every overlay, and of monitoring; returns the files."""
    written = [monitoring.FOLDER / GENERATED]
    text = yaml.dump_all(monitoring.objects(), Dumper=_Dumper, sort_keys=False, width=10_000)
    written[0].write_text(f"# By `make manifests`, from dashboards.yaml and alerts.yaml here.\n{text}")
    for overlay in overlays():
        path = overlay / GENERATED
        path.write_text(
            "# By `make manifests`, from serve.yaml here, serve_config.yaml and serve_app/switches.py.\n"
            + yaml.dump(patch(overlay), Dumper=_Dumper, sort_keys=False, width=120)
        )
        written.append(path)
    return written
