"""Which weights to serve, and how they get here. Knows nothing of torch: a file is bytes with a sha256.

find("auto")  models/yolov8n.pt when it is there, else the bundled models/default.pt
pull(...)     Ultralytics' published weights into models/, verified before they get their name
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import httpx
from tqdm import tqdm

from serve_app.errors import WeightsError

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
PREFERRED, BUNDLED = MODELS / "yolov8n.pt", MODELS / "default.pt"
SOURCE = "https://huggingface.co/Ultralytics/YOLOv8/resolve/main"  # Ultralytics' own repository
PULLABLE = tuple(f"yolov8{size}" for size in "nsmlx")
# Hashes as that repository states them; a size without one needs --sha256.
SHA256 = {"yolov8n": "31e20dde3def09e2cf938c7be6fe23d9150bbbe503982af13345706515f2ef95"}
HELP = (
    "`python -m serve_app weights pull yolov8n` downloads COCO weights, "
    "`git checkout models/default.pt` restores the bundled model"
)


@dataclass(frozen=True, slots=True)
class Weights:
    """The identity of loaded weights; every answer carries it. `class_names[i]` is the name of class id i."""

    name: str
    sha256: str
    class_names: tuple[str, ...]
    bundled: bool


def find(setting: str) -> Path:
    """The file that the `weights` setting means; a relative one lies below the project's root.

    Raises WeightsError, with the commands that help, when there is none.
    """
    candidates = (PREFERRED, BUNDLED) if setting == "auto" else (ROOT / setting,)
    for path in candidates:
        if path.is_file():
            return path
    raise WeightsError(f"no weights at {' or '.join(map(str, candidates))}: {HELP}")


def image_size(path: Path) -> int:
    """The square these weights were trained for, in pixels: `image_size` of the manifest beside them, else 640.

    Raises WeightsError when the manifest is of another file.
    """
    manifest = path.with_suffix(".json")
    if not manifest.exists():
        return 640
    stated = json.loads(manifest.read_text())
    if stated["sha256"] != sha256_of(path):
        raise WeightsError(f"{path} is not the file that {manifest.name} describes: the sha256 differs")
    size: int = stated["image_size"]
    return size


def sha256_of(path: Path) -> str:
    """Hex digest of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pull(name: str, sha256: str | None = None, source: str = SOURCE, folder: Path = MODELS) -> Path:
    """Downloads `source`/`name`.pt, going on where an earlier try stopped. The file appears whole and verified.

    Raises WeightsError when the hash is unknown or wrong, or the download fails.
    """
    wanted = sha256.lower() if sha256 else SHA256.get(name)
    if wanted is None:
        raise WeightsError(f"no sha256 is pinned for {name}: give the one you trust with --sha256")
    target, partial = folder / f"{name}.pt", folder / f"{name}.pt.part"
    if target.exists():
        if sha256_of(target) == wanted:
            return target
        raise WeightsError(f"{target} exists with another sha256: move it away to download the published one")
    try:
        download(f"{source}/{name}.pt", partial)
    except (httpx.HTTPError, OSError) as error:
        raise WeightsError(f"cannot download {name} from {source}: {error}") from error
    found = sha256_of(partial)
    if found != wanted:
        partial.unlink()
        raise WeightsError(f"{name} from {source} has sha256 {found}, not {wanted}: thrown away")
    partial.replace(target)
    return target


def download(url: str, partial: Path) -> None:
    """Appends to `partial` what it lacks of `url`, with a progress bar; starts over if the server cannot resume."""
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    timeout = httpx.Timeout(30, connect=5)
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=timeout) as answer:
        if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # complete already; the hash decides
        answer.raise_for_status()
        resumed = answer.status_code == httpx.codes.PARTIAL_CONTENT
        total = int(answer.headers.get("content-length", 0)) + (have if resumed else 0)
        bar = tqdm(total=total or None, initial=have if resumed else 0, unit="B", unit_scale=True, desc=partial.stem)
        with partial.open("ab" if resumed else "wb") as file, bar:
            for chunk in answer.iter_bytes():
                file.write(chunk)
                bar.update(len(chunk))
