"""Pull, test, publish and compare weights."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from serve_app import golden, hub, loader, store
from serve_app.errors import WrongWeights
from serve_app.loader import Loaded
from serve_app.settings import AppSettings
from serve_app.weights import Manifest, local


def pull(args: argparse.Namespace) -> int:
    """Downloads published weights into `models/`."""
    print(hub.pull(args.name, args.sha256, args.source))
    return 0


def make_golden(args: argparse.Namespace) -> int:
    """Writes a golden set: photos, and what these weights find on them. Look through it before you trust it."""
    loaded, size = load(args.weights, args)
    made = golden.make(loaded.model, loaded.weights.class_names, args.photos, size)
    args.out.write_text(made.model_dump_json(indent=1))
    for photo in made.photos:
        print(f"{photo.file}: {', '.join(f'{o.name} {o.score:.0%}' for o in photo.objects) or 'nothing'}")
    print(f"{args.out}: {len(made.photos)} photos, {sum(len(p.objects) for p in made.photos)} objects")
    return 0


def publish(args: argparse.Namespace) -> int:
    """Checks weights as a Detector does, golden set included, uploads them, prints the address to paste."""
    found = local(args.file)
    chosen = golden.Golden.model_validate_json(args.golden.read_bytes()) if args.golden else None
    loaded, size = load(args.file, args)
    if chosen:
        golden.check(chosen, loaded.model, loaded.weights.class_names, size)
    bytes_, names = Path(found.uri).stat().st_size, loaded.weights.class_names
    manifest = Manifest(sha256=found.sha256, bytes=bytes_, class_names=names, image_size=size, golden=chosen)
    print(store.Store(args.endpoint_url).publish(Path(found.uri), manifest, args.uri).uri)
    if not chosen:
        print("published without a golden set: only finite numbers were tested", file=sys.stderr)
    return 0


def verify(args: argparse.Namespace) -> int:
    """Downloads and tests published weights as a Detector would."""
    loaded, size = load(args.uri, args)
    manifest = loaded.pinned.manifest
    photos = len(manifest.golden.photos) if manifest and manifest.golden else 0
    print(f"{loaded.pinned.uri}\n{len(loaded.weights.class_names)} classes, {size} px, golden photos: {photos}")
    print(", ".join(f"{step} {took:.2f} s" for step, took in loaded.seconds.items()))
    return 0


def versions(args: argparse.Namespace) -> int:
    """Lists what was published under an address, newest first."""
    for v in store.Store(args.endpoint_url).versions(args.uri):
        print(f"{v.modified:%Y-%m-%d %H:%M:%S}  {v.bytes:>12,}  {v.uri}{'  (latest)' if v.latest else ''}")
    return 0


def compare(args: argparse.Namespace) -> int:
    """Tells where two weights disagree on photos, and shows the photos on which they differ most."""
    from serve_app import comparison

    (a, size_a), (b, size_b) = load(args.a, args), load(args.b, args)
    print(comparison.run((a, size_a), (b, size_b), args.photos, args.sheet))
    return 0


def load(uri: str, args: argparse.Namespace) -> tuple[Loaded, int]:
    """Weights by all steps of a start, without Ray; and the side of their square."""
    settings = AppSettings(s3_endpoint_url=args.endpoint_url)
    pinned = loader.pin(uri, settings)
    size = getattr(args, "image_size", None) or pinned.image_size
    if pinned.manifest and size != pinned.manifest.image_size:
        raise WrongWeights(f"the manifest beside {uri} says {pinned.manifest.image_size} px")
    get = partial(loader.fetch, settings=settings)
    loaded = loader.load(pinned.uri, get, settings=settings, size=size, device="cpu", batch_sizes={1})
    return loaded, size


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands and their options."""
    s3 = argparse.ArgumentParser(add_help=False)
    s3.add_argument("--endpoint-url", help="an S3-compatible store; AWS when not given")

    command = commands.add_parser("pull", help=pull.__doc__)
    command.add_argument("name", choices=hub.PULLABLE)
    command.add_argument("--sha256", help="for weights whose hash is not pinned here")
    command.add_argument("--source", default=hub.SOURCE, help="a mirror")
    command.set_defaults(run=pull)

    command = commands.add_parser("golden", help=make_golden.__doc__, parents=[s3])
    command.add_argument("weights", help="a file or an s3:// address")
    command.add_argument("photos", type=Path, nargs="+", metavar="PHOTO")
    command.add_argument("--out", type=Path, default=Path("golden.json"))
    command.set_defaults(run=make_golden)

    command = commands.add_parser("publish", help=publish.__doc__, parents=[s3])
    command.add_argument("file", metavar="FILE")
    command.add_argument("uri", metavar="s3://BUCKET/KEY.pt")
    command.add_argument("--golden", type=Path, metavar="golden.json", help="as `weights golden` writes it")
    command.add_argument("--image-size", type=int, help="side of the square in pixels, where no manifest says it")
    command.set_defaults(run=publish)

    for name, run in (("verify", verify), ("list", versions)):
        command = commands.add_parser(name, help=run.__doc__, parents=[s3])
        command.add_argument("uri", metavar="s3://BUCKET/KEY.pt")
        command.set_defaults(run=run)

    command = commands.add_parser("compare", help=compare.__doc__, parents=[s3])
    command.add_argument("a", metavar="A", help="a file or an s3:// address")
    command.add_argument("b", metavar="B")
    command.add_argument("photos", type=Path, metavar="DIR")
    command.add_argument("--sheet", type=Path, default=Path("differences.jpg"), help="the contact sheet")
    command.set_defaults(run=compare)
