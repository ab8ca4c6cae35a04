"""Pulls, tests, publishes and compares weights."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from serve_app.errors import WrongWeights
from serve_app.settings import LARGEST_SIZE, AppSettings
from serve_app.weights import golden_set, loader, quantisation, store, ultralytics_weights
from serve_app.weights.identity import Manifest, pin_file
from serve_app.weights.loader import Loaded


def pull(args: argparse.Namespace) -> int:
    """Downloads published weights into `models/`."""
    print(ultralytics_weights.pull(args.name, args.sha256, args.source))
    return 0


def make_golden(args: argparse.Namespace) -> int:
    """Writes a golden set: photos, and the objects these weights find on them. Review it before you use it."""
    loaded, size = load(args.weights, args)
    made = golden_set.make(loaded.engine, args.photos, size)
    args.out.write_text(made.model_dump_json(indent=1, exclude_none=True))
    for photo in made.photos:
        print(f"{photo.file}: {', '.join(f'{o.name} {o.score:.0%}' for o in photo.objects) or 'nothing'}")
    print(f"{args.out}: {len(made.photos)} photos, {sum(len(p.objects) for p in made.photos)} objects")
    return 0


def publish(args: argparse.Namespace) -> int:
    """Checks weights as a Detector does, golden set included, uploads them and prints their pinned address."""
    found = pin_file(args.file)
    chosen = golden_set.Golden.model_validate_json(args.golden.read_bytes()) if args.golden else None
    loaded, size = load(args.file, args)
    if chosen:
        golden_set.check(chosen, loaded.engine, size)
    bytes_, names = Path(found.uri).stat().st_size, loaded.weights.class_names
    manifest = Manifest(
        sha256=found.sha256,
        bytes=bytes_,
        class_names=names,
        image_size=size,
        task=loaded.engine.task.name,
        golden=chosen,
        int8=quantisation.for_manifest(found.uri, chosen, size),
    )
    print(store.Store(args.endpoint_url).publish(Path(found.uri), manifest, args.uri).uri)
    if not chosen:
        print("published without a golden set: only tested that the output is finite", file=sys.stderr)
    return 0


def verify(args: argparse.Namespace) -> int:
    """Downloads and tests published weights as a Detector does."""
    loaded, size = load(args.uri, args)
    manifest = loaded.pinned.manifest
    photos = len(manifest.golden.photos) if manifest and manifest.golden else 0
    print(
        f"{loaded.pinned.uri}\n"
        f"{loaded.weights.task}, {len(loaded.weights.class_names)} classes, {size} px, golden photos: {photos}"
    )
    print(", ".join(f"{step} {took:.2f} s" for step, took in loaded.seconds.items()))
    return 0


def versions(args: argparse.Namespace) -> int:
    """Lists the versions published under an address, newest first."""
    for v in store.Store(args.endpoint_url).versions(args.uri):
        print(f"{v.modified:%Y-%m-%d %H:%M:%S}  {v.bytes:>12,}  {v.uri}{'  (latest)' if v.latest else ''}")
    return 0


def compare(args: argparse.Namespace) -> int:
    """Reports how two weights differ on a folder of photos, and draws the photos on which they differ most."""
    from serve_app.weights import comparison

    (a, size_a), (b, size_b) = load(args.a, args), load(args.b, args)
    if a.weights.task != b.weights.task:
        raise WrongWeights(f"A is for the task {a.weights.task}, B for {b.weights.task}: only one task can be compared")
    print(comparison.run((a, size_a), (b, size_b), args.photos, args.sheet))
    return 0


def load(uri: str, args: argparse.Namespace) -> tuple[Loaded, int]:
    """Loads weights with every step of a service start, but without Ray, for batches of 1 on the CPU.

    Returns them with the side of their network input in pixels. Raises WeightsError.
    """
    settings = AppSettings(s3_endpoint_url=args.endpoint_url, image_size=getattr(args, "image_size", None))
    pinned = loader.pin(uri, settings)
    size = settings.image_size or pinned.image_size
    if pinned.manifest and size != pinned.manifest.image_size:
        raise WrongWeights(f"--image-size is {size} px, but the manifest of {uri} says {pinned.manifest.image_size} px")
    get = partial(loader.fetch, settings=settings)
    loaded = loader.load(pinned.uri, get, settings=settings, size=size, task=pinned.task, device="cpu", batch_sizes={1})
    return loaded, size


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands and their options to `commands`."""
    s3 = argparse.ArgumentParser(add_help=False)
    s3.add_argument("--endpoint-url", help="URL of an S3-compatible store; AWS when not given")

    command = commands.add_parser("pull", help=pull.__doc__)
    command.add_argument("name", choices=ultralytics_weights.PULLABLE)
    command.add_argument("--sha256", help="required for weights whose sha256 this project does not pin")
    command.add_argument("--source", help="URL of a mirror; where Ultralytics publishes them when not given")
    command.set_defaults(run=pull)

    command = commands.add_parser("golden", help=make_golden.__doc__, parents=[s3])
    command.add_argument("weights", help="a file or an s3:// address")
    command.add_argument("photos", type=Path, nargs="+", metavar="PHOTO")
    command.add_argument("--out", type=Path, default=Path("golden.json"))
    command.set_defaults(run=make_golden)

    command = commands.add_parser("publish", help=publish.__doc__, parents=[s3])
    command.add_argument("file", metavar="FILE")
    command.add_argument("uri", metavar="s3://BUCKET/KEY.pt")
    command.add_argument("--golden", type=Path, metavar="golden.json", help="golden set written by `weights golden`")
    sizes = range(32, LARGEST_SIZE + 1, 32)
    text = "side of the network input in pixels, if neither a manifest nor the training says it"
    command.add_argument("--image-size", type=int, choices=sizes, metavar="PIXELS", help=text)
    command.set_defaults(run=publish)

    for name, run in (("verify", verify), ("list", versions)):
        command = commands.add_parser(name, help=run.__doc__, parents=[s3])
        command.add_argument("uri", metavar="s3://BUCKET/KEY.pt")
        command.set_defaults(run=run)

    command = commands.add_parser("compare", help=compare.__doc__, parents=[s3])
    command.add_argument("a", metavar="A", help="a file or an s3:// address")
    command.add_argument("b", metavar="B")
    command.add_argument("photos", type=Path, metavar="DIR")
    command.add_argument("--sheet", type=Path, default=Path("differences.jpg"), help="where to write the contact sheet")
    command.set_defaults(run=compare)
