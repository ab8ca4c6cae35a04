"""Compares two weights on the same photos, and draws a contact sheet of the photos on which they differ most.

Works without labels: it says where A and B differ, not which one is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from tqdm import tqdm

from serve_app.errors import AppError
from serve_app.vision import drawing
from serve_app.vision.tasks.task import Task
from serve_app.weights import golden_set
from serve_app.weights.golden_set import Expected
from serve_app.weights.loader import Loaded

CONF = 0.25
SAME = 0.5  # least IoU of two boxes of the same object, as in COCO's mAP50
SHOWN, TILE = 8, 480  # most photos on the sheet, and the width of one in pixels


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between weights A and B on one photo.

    `overlaps` holds the IoU of each object that both found. `renamed` counts boxes in the same place with another
    class, `only_a` and `only_b` count objects that only one of them found.
    """

    photo: Path
    a: list[Expected]
    b: list[Expected]
    overlaps: list[float]
    renamed: int
    only_a: int
    only_b: int

    @property
    def size(self) -> int:
        """The number of objects on which A and B differ."""
        return self.renamed + self.only_a + self.only_b


def run(a: tuple[Loaded, int], b: tuple[Loaded, int], folder: Path, sheet: Path) -> str:
    """Returns the report, and writes the contact sheet to `sheet` if there are differences.

    `a` and `b` are weights with the side of their network input in pixels. A file in `folder` that cannot be read as an
    image is listed in the report and left out.
    """
    differences, unread = [], []
    for photo in tqdm(sorted(p for p in folder.iterdir() if p.is_file()), unit="photo"):
        try:
            content = photo.read_bytes()
            found = [golden_set.found(x.engine, content, size, CONF) for x, size in (a, b)]
        except AppError as error:
            unread.append(f"{photo.name}: {error}")
        else:
            differences.append(difference(a[0].engine.task, photo, *found))
    worst = [d for d in sorted(differences, key=lambda d: -d.size) if d.size][:SHOWN]
    if worst:
        contact_sheet(worst, sheet)
    overlaps = [o for d in differences for o in d.overlaps]
    mean = f"{sum(overlaps) / len(overlaps):.3f}" if overlaps else "-"
    count = {k: sum(getattr(d, k) for d in differences) for k in ("renamed", "only_a", "only_b")}
    lines = [
        f"{len(differences)} photos, {sum(len(d.a) for d in differences)} objects in A, "
        f"{sum(len(d.b) for d in differences)} in B",
        f"same object {len(overlaps)} (mean IoU {mean}), other class {count['renamed']}, "
        f"only A {count['only_a']}, only B {count['only_b']}",
        *(f"  {d.size:3d} differences: {d.photo.name}" for d in worst),
        *(f"  not read: {line}" for line in unread),
    ]
    return "\n".join([*lines, f"photos that differ most, A left, B right: {sheet}"] if worst else lines)


def difference(task: Task, photo: Path, a: list[Expected], b: list[Expected]) -> Difference:
    """Pairs the boxes of A with those of B.

    Starts with A's most confident box. Takes the box of the same class with the largest IoU; then, for boxes still
    unpaired, any box of another class with an IoU of at least SAME.
    """
    unmatched_b, unmatched_a, overlaps = list(b), [], []
    for one in a:
        shared, best = golden_set.nearest(task, one, unmatched_b)
        if best and shared >= SAME:
            unmatched_b.remove(best)
            overlaps.append(shared)
        else:
            unmatched_a.append(one)
    renamed = 0
    for one in list(unmatched_a):
        other = next((o for o in unmatched_b if task.overlap(o.part, one.part) >= SAME), None)
        if other:
            unmatched_a.remove(one)
            unmatched_b.remove(other)
            renamed += 1
    return Difference(photo, a, b, overlaps, renamed, len(unmatched_a), len(unmatched_b))


def contact_sheet(worst: list[Difference], target: Path) -> None:
    """Writes a JPEG with one row for each photo: A's boxes on the left, B's on the right."""
    tiles = []
    for d in worst:
        with Image.open(d.photo) as file:
            photo = ImageOps.exif_transpose(file).convert("RGB")
        for objects in (d.a, d.b):
            drawn = drawing.draw(photo, [o.part | labels(o) for o in objects])
            tiles.append(drawn.resize((TILE, max(1, drawn.height * TILE // drawn.width))))
    pairs = list(zip(tiles[::2], tiles[1::2], strict=True))
    sheet = Image.new("RGB", (2 * TILE, sum(left.height for left, _ in pairs)))
    top = 0
    for left, right in pairs:
        sheet.paste(left, (0, top))
        sheet.paste(right, (TILE, top))
        top += left.height
    target.write_bytes(drawing.to_jpeg(sheet))


def labels(one: Expected) -> dict[str, Any]:
    """What a drawing says of an object. The colour depends on the name, because A and B may have other class ids."""
    return {"class": sum(one.name.encode()), "name": one.name, "confidence": one.score}
