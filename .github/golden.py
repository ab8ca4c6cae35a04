"""`golden.py s3://BUCKET/KEY.pt`: writes the golden set of the latest weights to golden.json and its photos to photos/.

New weights must find the same objects, so they are published with the golden set of those that they replace.
"""

from __future__ import annotations

import sys
from pathlib import Path

from serve_app.weights.store import Store


def main(uri: str) -> None:
    """Writes the files. Raises WeightsError, FileExistsError, and SystemExit without a golden set."""
    pinned = Store().pin(uri)
    if not pinned.manifest or not pinned.manifest.golden:
        sys.exit(f"{pinned.uri} has no golden set: make one and publish by hand, see serve_app/README.md")
    golden = pinned.manifest.golden
    Path("golden.json").write_text(golden.model_dump_json(indent=1, exclude_none=True))
    photos = Path("photos")
    photos.mkdir()
    for photo in golden.photos:
        (photos / photo.file).write_bytes(photo.jpeg)
    print(f"{pinned.uri}: {len(golden.photos)} photos, {sum(len(p.objects) for p in golden.photos)} objects")


if __name__ == "__main__":
    main(sys.argv[1])
