"""Two weights on the same photos: what they agree on, and a contact sheet of the photos on which they differ most."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps
from tqdm import tqdm

from serve_app import drawing, golden
from serve_app.errors import AppError
from serve_app.golden import Expected
from serve_app.loader import Loaded

CONF = 0.25
SAME = 0.5  # IoU from which two boxes are about the same thing, as COCO counts it
SHOWN, TILE = 8, 480  # photos on the sheet, and the width of one in pixels


@dataclass(frozen=True, slots=True)
class Difference:
    """One photo: objects of both, overlaps of those both found, other names for the same place, and found by one."""

    photo: Path
    a: list[Expected]
    b: list[Expected]
    overlaps: list[float]
    renamed: int
    only_a: int
    only_b: int

    @property
    def size(self) -> int:
        """Objects on which they differ."""
        return self.renamed + self.only_a + self.only_b


def run(a: tuple[Loaded, int], b: tuple[Loaded, int], folder: Path, sheet: Path) -> str:
    """The report; writes the sheet where there are differences. A photo that cannot be read is told of and left out."""
    differences, unread = [], []
    for photo in tqdm(sorted(p for p in folder.iterdir() if p.is_file()), unit="photo"):
        try:
            content = photo.read_bytes()
            found = [golden.found(x.model, x.weights.class_names, content, size, CONF) for x, size in (a, b)]
        except AppError as error:
            unread.append(f"{photo.name}: {error}")
        else:
            differences.append(difference(photo, *found))
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
    return "\n".join([*lines, f"the most different, A left, B right: {sheet}"] if worst else lines)


def difference(photo: Path, a: list[Expected], b: list[Expected]) -> Difference:
    """Pairs boxes greedily, surest of A first: of the same class, else of another, by overlap."""
    left, alone, overlaps = list(b), [], []
    for one in a:
        best = max((o for o in left if o.name == one.name), key=lambda o: golden.overlap(o.box, one.box), default=None)
        if best and (shared := golden.overlap(best.box, one.box)) >= SAME:
            left.remove(best)
            overlaps.append(shared)
        else:
            alone.append(one)
    renamed = 0
    for one in list(alone):
        other = next((o for o in left if golden.overlap(o.box, one.box) >= SAME), None)
        if other:
            alone.remove(one)
            left.remove(other)
            renamed += 1
    return Difference(photo, a, b, overlaps, renamed, len(alone), len(left))


def contact_sheet(worst: list[Difference], target: Path) -> None:
    """One row a photo: A's boxes left, B's right."""
    rows = []
    for d in worst:
        with Image.open(d.photo) as file:
            photo = ImageOps.exif_transpose(file).convert("RGB")
        for objects in (d.a, d.b):
            labelled = [(*o.box, sum(o.name.encode()), f"{o.name} {o.score:.0%}") for o in objects]
            drawn = drawing.draw(photo, labelled)
            rows.append(drawn.resize((TILE, max(1, drawn.height * TILE // drawn.width))))
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    sheet = Image.new("RGB", (2 * TILE, sum(left.height for left, _ in pairs)))
    top = 0
    for left, right in pairs:
        sheet.paste(left, (0, top))
        sheet.paste(right, (TILE, top))
        top += left.height
    target.write_bytes(drawing.to_jpeg(sheet))
