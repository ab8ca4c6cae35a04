"""The command `python -m serve_app predict`: sends photos to a running service, prints a table, draws what it finds.

Knows the service only by its HTTP interface. Needs neither Ray nor torch.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from tqdm import tqdm

from serve_app.settings import PILLOW_LIMIT
from serve_app.vision import image
from serve_app.vision.drawing import draw


def predict(photos: list[Path], url: str, options: dict[str, str], save: Path | None, key: str | None = None) -> int:
    """Returns the number of failed photos, and prints each failure on stderr. `save` is the folder for drawn photos."""
    failed = 0
    if save:
        save.mkdir(parents=True, exist_ok=True)
    headers = {"X-API-Key": key} if key else None
    names: Counter[str] = Counter()
    local = httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")  # a proxy from the environment serves other hosts
    with httpx.Client(base_url=url, timeout=60, trust_env=not local, headers=headers) as http:
        for path in tqdm(photos, unit="photo", disable=len(photos) < 2):
            try:
                answer = http.post("/v1/predict", params=options, files={"file": (path.name, path.read_bytes())})
            except (OSError, httpx.TransportError) as error:
                failed += 1
                print(f"{path}: {error}", file=sys.stderr)
                continue
            if answer.is_error:
                failed += 1
                print(f"{path}: {explain(answer)}", file=sys.stderr)
                continue
            found = answer.json()["images"][0]
            tqdm.write(table(path, found))
            if save:
                names[path.name] += 1
                again = f"-{names[path.name]}" if names[path.name] > 1 else ""  # a/1.jpg and b/1.jpg have one name
                paint(path, found["results"], save / f"{path.name}{again}.boxes.jpg")
    return failed


def explain(answer: httpx.Response) -> str:
    """The problem's code and detail, or the status alone, for example from a proxy in between."""
    if answer.headers.get("content-type", "").startswith("application/problem+json"):
        problem = answer.json()
        return f"{problem['code']}: {problem['detail']}"
    return f"HTTP {answer.status_code}"


def table(path: Path, found: dict[str, Any]) -> str:
    """A heading, then one line for each object: name, confidence, corners in pixels."""
    height, width = found["shape"]
    took = sum(found["speed"].values())
    lines = [f"{path}  {width} x {height}, {len(found['results'])} found, {took:.0f} ms"]
    for result in found["results"]:
        corners = "".join(f"{value:9.1f}" for value in result.get("box", {}).values())
        lines.append(f"  {result['name']:<16}{result['confidence']:>6.0%}{corners}")
    return "\n".join(lines)


def paint(path: Path, results: list[dict[str, Any]], target: Path) -> None:
    """Writes the upright photo with what was found to `target`, as a JPEG."""
    photo = Image.fromarray(image.decode(path.read_bytes(), PILLOW_LIMIT))  # as the service has seen it
    draw(photo, results).save(target, quality=90)
    tqdm.write(f"  drawn: {target}")
