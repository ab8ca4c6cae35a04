"""Downloads Ultralytics' published weights into `models/`.

A download resumes where an earlier one stopped. The file gets its final name only after its sha256 is verified.
"""

from __future__ import annotations

from pathlib import Path

import httpx
from tqdm import tqdm

from serve_app.errors import WeightsError
from serve_app.weights.identity import MODELS, sha256_of

YOLOV8 = "https://huggingface.co/Ultralytics/YOLOv8/resolve/main"  # Ultralytics' own repository
OTHERS = "https://github.com/ultralytics/assets/releases/download/v8.4.0"  # where Ultralytics 8.4 itself looks
SIZES = {"yolov8{}": "nsmlx", "yolov5{}u": "nsmlx", "yolov9{}": "tsmce", "yolov10{}": "nsmblx"}
SIZES |= {f"yolo{family}{{}}": "nsmlx" for family in (11, 12, 26)}
SIZES |= {f"yolo{k}{{}}-{task}": "nsmlx" for k in ("v8", "11", "26") for task in ("seg", "pose", "obb", "cls")}
SIZES |= {"yolov9{}-seg": "ce"}
PULLABLE = tuple(name.format(size) for name, sizes in SIZES.items() for size in sizes)
# sha256 as published in the repository of YOLOv8. Weights that are not listed need --sha256.
SHA256 = {"yolov8n": "31e20dde3def09e2cf938c7be6fe23d9150bbbe503982af13345706515f2ef95"}


def pull(name: str, sha256: str | None = None, source: str | None = None, folder: Path = MODELS) -> Path:
    """Downloads `source`/`name`.pt into `folder`, resumes an earlier try, and returns the path of the verified file.

    Without `source`, from where Ultralytics publishes them. Raises WeightsError when the hash is unknown or wrong, or
    the download fails.
    """
    wanted = sha256.lower() if sha256 else SHA256.get(name)
    if wanted is None:
        raise WeightsError(f"no sha256 is pinned for {name}: pass one that you trust with --sha256")
    source = source or (YOLOV8 if name.startswith("yolov8") and "-" not in name else OTHERS)
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
        raise WeightsError(f"{name} from {source} has sha256 {found}, not {wanted}: the download was deleted")
    partial.replace(target)
    return target


def download(url: str, partial: Path) -> None:
    """Appends the missing bytes of `url` to `partial`, with a progress bar. Starts over if the server cannot resume."""
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    timeout = httpx.Timeout(30, connect=5)
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=timeout) as answer:
        if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # `partial` is complete; the caller checks its sha256
        answer.raise_for_status()
        resumed = answer.status_code == httpx.codes.PARTIAL_CONTENT
        total = int(answer.headers.get("content-length", 0)) + (have if resumed else 0)
        bar = tqdm(total=total or None, initial=have if resumed else 0, unit="B", unit_scale=True, desc=partial.stem)
        with partial.open("ab" if resumed else "wb") as file, bar:
            for chunk in answer.iter_bytes():
                file.write(chunk)
                bar.update(len(chunk))
