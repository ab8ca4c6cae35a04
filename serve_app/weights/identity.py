"""The identity of weights, pinned before they are loaded, and weights in local files.

Must not know torch: here, weights are bytes with a sha256. `store.py` handles weights in S3.
"""

from __future__ import annotations

import hashlib
import pickletools
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile, ZipFile

from pydantic import BaseModel, ConfigDict, ValidationError

from serve_app.errors import DamagedWeights, MissingWeights
from serve_app.settings import ROOT
from serve_app.vision.tasks.by_name import TASKS
from serve_app.weights.golden_set import Golden
from serve_app.weights.quantisation import Quantisation

MODELS = ROOT / "models"
PREFERRED, BUNDLED = MODELS / "yolov8n.pt", MODELS / "default.pt"
LARGEST_PICKLE = 50_000_000  # bytes; that of YOLOv8x has 0.2 MB, the numbers are in other files of the archive
REMEMBER = {"BINPUT", "LONG_BINPUT", "MEMOIZE", "PUT"}  # steps that only note a value
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
    task: Literal["detect", "segment", "pose", "obb", "classify"] = "detect"
    golden: Golden | None = None
    int8: Quantisation | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """The identity of loaded weights, part of every answer. `class_names[i]` is the name of class id i."""

    name: str
    sha256: str
    class_names: tuple[str, ...]
    bundled: bool
    version: str | None = None  # S3 VersionId
    trained_size: int | None = None  # side of the training's network input in pixels, if known
    task: str = "detect"
    precision: str = "float32"  # the numbers of its network, see `Engine`


@dataclass(frozen=True, slots=True)
class Pinned:
    """Weights that are fixed to exact bytes: `uri` is a path, or `s3://bucket/key?versionId=…&sha256=…`."""

    uri: str
    name: str
    sha256: str
    version: str | None
    manifest: Manifest | None
    trained_size: int | None = None
    network: str | None = None  # Ultralytics' class of the network, as the file names it

    @property
    def task(self) -> str:
        """The task by the manifest, or as the file says it; `detect` when nothing says it."""
        if self.manifest:
            return self.manifest.task
        return next((task.name for task in TASKS.values() if task.network == self.network), "detect")

    @property
    def stated_size(self) -> int | None:
        """Side of the network input in pixels, by the manifest, or as the training recorded it."""
        return self.manifest.image_size if self.manifest else self.trained_size

    @property
    def image_size(self) -> int:
        """Side of the network input these weights were trained for, in pixels; their task's usual one if unknown."""
        return self.stated_size or TASKS[self.task].image_size


def pin_file(setting: str) -> Pinned:
    """Pins the file of a `weights` setting. A relative path starts at the repository's root.

    Raises MissingWeights with the commands that help, or DamagedWeights when the manifest next to the file is invalid
    or belongs to another file.
    """
    candidates = (PREFERRED, BUNDLED) if setting == "auto" else (ROOT / setting,)
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise MissingWeights(f"no weights at {' or '.join(map(str, candidates))}: {HELP}")
    if path.name.encode(errors="replace").decode() != path.name:  # Python has read other bytes as surrogates
        raise MissingWeights(f"the file name of the weights {path!a} is not UTF-8: rename it")
    manifest_path, sha256 = path.with_suffix(".json"), sha256_of(path)
    try:
        manifest = Manifest.model_validate_json(manifest_path.read_bytes()) if manifest_path.exists() else None
    except ValidationError as error:
        raise DamagedWeights(f"{manifest_path} is not a valid weights manifest: {error}") from error
    if manifest and manifest.sha256 != sha256:
        raise DamagedWeights(f"{path} is not the file that {manifest_path.name} describes: the sha256 differs")
    return Pinned(str(path), path.stem, sha256, None, manifest, *stated(path))


def stated(path: Path) -> tuple[int | None, str | None]:
    """What a file says of its network; None each where it does not.

    Side of the training's network input (`imgsz`), rounded up to 32 pixels, and Ultralytics' class of the network.
    Reads the steps of the checkpoint's pickle without taking any, because torch takes 2 s to import.
    """
    try:
        with ZipFile(path) as archive:
            (pickled,) = (info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
            if pickled.file_size > LARGEST_PICKLE:
                return None, None
            steps = [(step.name, value) for step, value, _ in pickletools.genops(archive.read(pickled))]
    except (BadZipFile, ValueError, OSError, EOFError, zlib.error):
        return None, None  # the loader says what the file is
    given = [value for name, value in steps if name not in REMEMBER]
    sizes = [size for key, size in pairwise(given) if key == "imgsz" and isinstance(size, int) and size > 0]
    known = {task.network for task in TASKS.values()}
    networks = [name for value in given if isinstance(value, str) and (name := value.rpartition(" ")[2]) in known]
    return -(-sizes[0] // 32) * 32 if sizes else None, networks[0] if networks else None


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file. Reads it in blocks, so its size does not matter."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
