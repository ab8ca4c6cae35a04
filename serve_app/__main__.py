"""The command line, `python -m serve_app`: `serve`, `predict`, `key`, `weights …`, `manifests` and `check`.

Each command imports only what it needs. The first line of its docstring is its help text.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from serve_app.errors import WeightsError
from serve_app.ops import ray_environment
from serve_app.settings import ROOT
from serve_app.weights import cli


def main(argv: list[str] | None = None) -> int:
    """Runs a command. Returns its exit code."""
    args = parser().parse_args(argv)
    try:
        return int(args.run(args))
    except WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def serve(args: argparse.Namespace) -> int:
    """Runs the service in the foreground."""
    temp = Path(tempfile.mkdtemp(prefix="ray-"))  # short, because Ray's socket paths may have 107 characters
    for name, value in ray_environment.local(temp).items():
        os.environ.setdefault(name, value)
    from serve_app.ops import launch  # after Ray's environment variables are set; Ray takes 2 s to import

    try:
        launch.run(args.config, temp)
    except launch.StartFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return 0


def predict(args: argparse.Namespace) -> int:
    """Sends photos to a running service."""
    from serve_app import client

    given = {"conf": args.conf, "iou": args.iou, "classes": args.classes, "max_det": args.max_det}
    return min(
        client.predict(args.photos, args.url, {k: v for k, v in given.items() if v is not None}, args.save, args.key), 1
    )


def key(args: argparse.Namespace) -> int:
    """Makes an API key and its line for the keys file."""
    from serve_app.http import auth

    secret = auth.new_key()
    print(f"key, for {args.name} only:  {secret}\nline for the keys file:  {args.name} {auth.digest(secret)}")
    return 0


def manifests(_: argparse.Namespace) -> int:
    """Writes the generated part of every Kubernetes overlay."""
    from serve_app.ops import manifests

    for path in manifests.write():
        print(path.relative_to(ROOT))
    return 0


def check(args: argparse.Namespace) -> int:
    """Checks rendered Kubernetes overlays for settings that are valid alone but wrong together."""
    import yaml

    from serve_app.ops import check, overlay

    findings, pods = [], []
    for file in args.files:
        try:
            rendered = overlay.read(file)
            findings += check.check(rendered)
            pods += rendered.standalone_pods()
        except (OSError, LookupError, ValueError, yaml.YAMLError) as error:
            print(f"error: {file} holds no RayService with a Serve configuration: {error}", file=sys.stderr)
            return 1
    if args.pods:
        args.pods.write_text(yaml.safe_dump_all(pods))
    print("\n".join(map(str, findings)) or f"{len(args.files)} files checked, no findings")
    return int(bool(findings))


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="python -m serve_app", description="Send a photo, get named boxes.")
    commands = top.add_subparsers(required=True)

    command = commands.add_parser("serve", help=serve.__doc__)
    command.add_argument("--config", type=Path, default=ROOT / "serve_config.yaml")
    command.set_defaults(run=serve)

    command = commands.add_parser("predict", help=predict.__doc__)
    command.add_argument("photos", type=Path, nargs="+", metavar="PHOTO")
    command.add_argument("--url", default="http://127.0.0.1:8000")
    command.add_argument("--key", help="API key")
    command.add_argument("--save", type=Path, metavar="DIR", help="write the photos with their boxes into DIR")
    for option in ("--conf", "--iou", "--classes", "--max_det"):
        command.add_argument(option, help="as in serve_app/API.md")
    command.set_defaults(run=predict)

    cli.add(commands.add_parser("weights", help=cli.__doc__).add_subparsers(required=True))

    commands.add_parser("manifests", help=manifests.__doc__).set_defaults(run=manifests)

    command = commands.add_parser("check", help=check.__doc__)
    command.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a rendered overlay, see `make manifests`")
    command.add_argument("--pods", type=Path, metavar="FILE", help="write the pods to FILE, for other linters")
    command.set_defaults(run=check)

    command = commands.add_parser("key", help=key.__doc__)
    command.add_argument("name", type=lambda text: text.replace(" ", "-"))
    command.set_defaults(run=key)
    return top


if __name__ == "__main__":
    sys.exit(main())
