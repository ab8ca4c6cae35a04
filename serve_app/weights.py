"""The identity of weights, pinned before they are loaded; and weights that lie in a file here.

Knows nothing of torch: weights are bytes with a sha256. Those in S3 are in `store`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from serve_app.errors import DamagedWeights, MissingWeights
from serve_app.golden import Golden

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
PREFERRED, BUNDLED = MODELS / "yolov8n.pt", MODELS / "default.pt"
HELP = (
    "`python -m serve_app weights pull yolov8n` downloads COCO weights, "
    "`git checkout models/default.pt` restores the bundled model"
)


class Manifest(BaseModel):
    """What is known of weights before they are loaded: `X.json` beside a file `X.pt`, or beside an object in S3."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int
    class_names: tuple[str, ...]
    image_size: int
    task: Literal["detect"] = "detect"
    golden: Golden | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """The identity of loaded weights; every answer carries it. `class_names[i]` is the name of class id i."""

    name: str
    sha256: str
    class_names: tuple[str, ...]
    bundled: bool
    version: str | None = None  # S3's VersionId


@dataclass(frozen=True, slots=True)
class Pinned:
    """Exactly which bytes: `uri` is a path, or `s3://bucket/key?versionId=…&sha256=…`."""

    uri: str
    name: str
    sha256: str
    version: str | None
    manifest: Manifest | None

    @property
    def image_size(self) -> int:
        """The square these weights were trained for, in pixels; 640 where no manifest says otherwise."""
        return self.manifest.image_size if self.manifest else 640


def local(setting: str) -> Pinned:
    """The file that a `weights` setting means; a relative one lies below the project's root.

    Raises MissingWeights, with the commands that help, or DamagedWeights when a manifest beside it is of another file.
    """
    candidates = (PREFERRED, BUNDLED) if setting == "auto" else (ROOT / setting,)
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise MissingWeights(f"no weights at {' or '.join(map(str, candidates))}: {HELP}")
    beside, sha256 = path.with_suffix(".json"), sha256_of(path)
    try:
        manifest = Manifest.model_validate_json(beside.read_bytes()) if beside.exists() else None
    except ValidationError as error:
        raise DamagedWeights(f"{beside} is not a manifest of weights: {error}") from error
    if manifest and manifest.sha256 != sha256:
        raise DamagedWeights(f"{path} is not the file that {beside.name} describes: the sha256 differs")
    return Pinned(str(path), path.stem, sha256, None, manifest)


def sha256_of(path: Path) -> str:
    """Hex digest of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
