"""The identity of weights, pinned before they are loaded, and weights in local files.

Must not know torch: here, weights are bytes with a sha256. `store.py` handles weights in S3.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from serve_app.errors import DamagedWeights, MissingWeights
from serve_app.settings import ROOT
from serve_app.weights.golden_set import Golden

MODELS = ROOT / "models"
PREFERRED, BUNDLED = MODELS / "yolov8n.pt", MODELS / "default.pt"
HELP = (
    "`python -m serve_app weights pull yolov8n` downloads COCO weights, "
    "`git checkout models/default.pt` restores the bundled model"
)


class Manifest(BaseModel):
    """The facts about weights that are known before loading.

    Stored as `X.json` next to a file `X.pt`, or in S3 as `KEY.manifests/SHA256.json`. `bytes` is the size of the file,
    `image_size` the side of the network input in pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int
    class_names: tuple[str, ...]
    image_size: int
    task: Literal["detect"] = "detect"
    golden: Golden | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """The identity of loaded weights, part of every answer. `class_names[i]` is the name of class id i."""

    name: str
    sha256: str
    class_names: tuple[str, ...]
    bundled: bool
    version: str | None = None  # S3 VersionId


@dataclass(frozen=True, slots=True)
class Pinned:
    """Weights that are fixed to exact bytes: `uri` is a path, or `s3://bucket/key?versionId=…&sha256=…`."""

    uri: str
    name: str
    sha256: str
    version: str | None
    manifest: Manifest | None

    @property
    def image_size(self) -> int:
        """Side of the network input these weights were trained for, in pixels; 640 without a manifest."""
        return self.manifest.image_size if self.manifest else 640


def pin_file(setting: str) -> Pinned:
    """Pins the file of a `weights` setting. A relative path starts at the repository's root.

    Raises MissingWeights with the commands that help, or DamagedWeights when the manifest next to the file is invalid
    or belongs to another file.
    """
    candidates = (PREFERRED, BUNDLED) if setting == "auto" else (ROOT / setting,)
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise MissingWeights(f"no weights at {' or '.join(map(str, candidates))}: {HELP}")
    manifest_path, sha256 = path.with_suffix(".json"), sha256_of(path)
    try:
        manifest = Manifest.model_validate_json(manifest_path.read_bytes()) if manifest_path.exists() else None
    except ValidationError as error:
        raise DamagedWeights(f"{manifest_path} is not a valid weights manifest: {error}") from error
    if manifest and manifest.sha256 != sha256:
        raise DamagedWeights(f"{path} is not the file that {manifest_path.name} describes: the sha256 differs")
    return Pinned(str(path), path.stem, sha256, None, manifest)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file. Reads it in blocks, so its size does not matter."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
