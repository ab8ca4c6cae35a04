"""Reads a Serve configuration and refuses the keys that Serve would silently drop."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from serve_app.weights import ROOT

UNCHECKED = {"args", "user_config", "runtime_env"}  # ours, which pydantic checks, or free by nature


def load(path: Path) -> dict[str, Any]:
    """The file's content. Raises OSError, yaml.YAMLError, or ValueError that names what is wrong."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    ServeDeploySchema.model_validate(content)
    if unknown := unknown_keys(content, ServeDeploySchema):
        raise ValueError(f"keys that Serve does not know: {', '.join(unknown)}")
    return content


def apart(content: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the stages in replicas of their own: kuberay/apart.yaml laid over its application."""
    difference = yaml.safe_load((ROOT / "kuberay" / "apart.yaml").read_text())
    (application,) = content["applications"]
    args = application["args"] | difference["args"]
    return content | {"applications": [application | {"args": args, "deployments": difference["deployments"]}]}


def models(annotation: object) -> list[type[BaseModel]]:
    """The pydantic models anywhere inside a type."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in get_args(annotation) for m in models(part)]


def unknown_keys(value: dict[str, Any], model: type[BaseModel], where: str = "") -> list[str]:
    """The keys, with their path, that the schema would drop."""
    bad = []
    for key, inner in value.items():
        path = f"{where}.{key}"
        field = model.model_fields.get(key)
        if field is None:
            bad.append(path)
        elif key not in UNCHECKED:
            known = [AutoscalingConfig] if key == "autoscaling_config" else models(field.annotation)
            for item in inner if isinstance(inner, list) else [inner]:
                if isinstance(item, dict) and known:
                    bad += unknown_keys(item, known[0], path)
    return bad
