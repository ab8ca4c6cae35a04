"""Reads a Serve configuration, and rejects keys that Serve would silently drop.

Checks the structure only; `AppSettings` and `DetectorSettings` check the values.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from serve_app.settings import ROOT

UNCHECKED = {"args", "user_config", "runtime_env"}  # the first two have our own schemas, the third has no schema


def load(path: Path, difference: str = "") -> dict[str, Any]:
    """The content of a file, merged with `difference`, a YAML text.

    Raises OSError, yaml.YAMLError, or ValueError that names the invalid keys.
    """
    content: dict[str, Any] = merged(yaml.safe_load(path.read_bytes()), yaml.safe_load(difference) or {})
    check(content)
    return content


def check(content: dict[str, Any]) -> None:
    """Raises ValueError that names the keys Serve would reject or silently drop."""
    ServeDeploySchema.model_validate(content)
    if unknown := unknown_keys(content, ServeDeploySchema):
        raise ValueError(f"unknown keys that Serve would drop: {', '.join(unknown)}")


def apart(content: dict[str, Any]) -> dict[str, Any]:
    """The configuration merged with kuberay/separate-stages.yaml, which runs each stage in replicas of its own."""
    found: dict[str, Any] = merged(content, yaml.safe_load((ROOT / "kuberay" / "separate-stages.yaml").read_text()))
    return found


def merged(base: Any, difference: Any) -> Any:  # noqa: ANN401 - any YAML value
    """`base` changed by `difference`: mappings merge by key, lists of named items by name; null removes a key.

    Any other value in `difference` replaces the one in `base`.
    """
    if isinstance(base, dict) and isinstance(difference, dict):
        both = {key: merged(base.get(key), value) for key, value in difference.items() if value is not None}
        return {key: value for key, value in base.items() if key not in difference} | both
    if named(base) and named(difference):
        over = {one["name"]: one for one in difference}
        known = [merged(one, over.pop(one["name"], {})) for one in base]
        return known + list(over.values())
    return difference


def named(value: object) -> bool:
    """Whether `value` is a list of mappings that all have a `name`."""
    return isinstance(value, list) and all(isinstance(one, dict) and "name" in one for one in value)


def models(annotation: object) -> list[type[BaseModel]]:
    """All pydantic models inside a type annotation."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in get_args(annotation) for m in models(part)]


def unknown_keys(value: dict[str, Any], model: type[BaseModel], where: str = "") -> list[str]:
    """The paths of all keys that `model` would drop, such as `.http_options.prot`."""
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
