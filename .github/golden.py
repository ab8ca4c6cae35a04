"""`golden.py s3://BUCKET/KEY.pt`: writes the golden set of the weights published last, golden.json, and photos/ of it.

New weights must find what was right once; so they are published with the set of those they replace.
"""

from __future__ import annotations

import sys
from pathlib import Path

from serve_app.store import Store


def main(uri: str) -> None:
    """Raises WeightsError, SystemExit."""
    pinned = Store().pin(uri)
    if not pinned.manifest or not pinned.manifest.golden:
        sys.exit(f"{pinned.uri} has no golden set: make one and publish by hand, see serve_app/README.md")
    golden = pinned.manifest.golden
    Path("golden.json").write_text(golden.model_dump_json(indent=1))
    photos = Path("photos")
    photos.mkdir()
    for photo in golden.photos:
        (photos / photo.file).write_bytes(photo.jpeg)
    print(f"{pinned.uri}: {len(golden.photos)} photos, {sum(len(p.objects) for p in golden.photos)} objects")


if __name__ == "__main__":
    main(sys.argv[1])
