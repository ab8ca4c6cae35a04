"""The command line, `python -m serve_app`: `serve`, `deploy`, `train`, `predict`, `key`, `weights …` and others.

Each command imports only what it needs. The first line of its docstring is its help text.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path

from serve_app.batch import cli as batch_cli
from serve_app.errors import AppError, CommandFailed, WeightsError
from serve_app.ops import ray_environment, service_folder
from serve_app.settings import ROOT
from serve_app.weights import cli

OPTIONS = (  # of a request
    "conf", "iou", "classes", "agnostic_nms", "max_det", "tile", "overlap", "tile_merge", "masks", "retina_masks",
    "topk",
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs a command. Returns its exit code."""
    args = parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not end the command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return int(args.run(args))
    except (WeightsError, CommandFailed, AppError, OSError) as error:  # OSError: for example, no space is left
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return 1


def serve(args: argparse.Namespace) -> int:
    """Runs the service in the foreground."""
    folder = service_folder.make()
    try:
        for name, value in ray_environment.local(folder).items():
            os.environ.setdefault(name, value)
        os.environ["TMPDIR"] = str(folder)  # Ray's dashboard has sockets there: with a long path it took a minute more
        from serve_app.ops import launch  # after Ray's environment variables are set; Ray takes 2 s to import

        launch.run(args.config, folder)
    finally:
        service_folder.remove(folder)
    return 0


def deploy(args: argparse.Namespace) -> int:
    """Changes a service that runs on this machine to a changed configuration."""
    from serve_app.ops import deploy

    deploy.deploy(args.config, args.address, args.lower_protection)
    return 0


def train(_: argparse.Namespace) -> int:
    """Trains a model as a SageMaker training job does, below /opt/ml."""
    from models import sagemaker

    return sagemaker.main()


def predict(args: argparse.Namespace) -> int:
    """Sends photos to a running service."""
    from serve_app import client

    given = {k: v for k, v in vars(args).items() if k in OPTIONS and v is not None}
    return min(client.predict(args.photos, args.url, given, args.save, args.key), 1)


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
    """Checks rendered Kubernetes overlays and batches for settings that are valid alone but wrong together."""
    import yaml

    from serve_app.ops import check

    findings, pods = [], []
    for file in args.files:
        try:
            rendered = check.read(file)
            findings += check.check(rendered)
            pods += rendered.standalone_pods()
        except (OSError, LookupError, ValueError, yaml.YAMLError) as error:
            print(
                f"error: {file} holds no RayJob, and no RayService with a Serve configuration: {error}", file=sys.stderr
            )
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

    command = commands.add_parser("deploy", help=deploy.__doc__)
    command.add_argument("config", type=Path, metavar="FILE")
    command.add_argument("--address", help="of the service (URL or port), if FILE would suit several")
    command.add_argument("--lower-protection", action="store_true", help="deploy although it lowers protection")
    command.set_defaults(run=deploy)

    commands.add_parser("train", help=train.__doc__).set_defaults(run=train)

    command = commands.add_parser("predict", help=predict.__doc__)
    command.add_argument("photos", type=Path, nargs="+", metavar="PHOTO")
    command.add_argument("--url", default="http://127.0.0.1:8000")
    command.add_argument("--key", help="API key")
    command.add_argument("--save", type=Path, metavar="DIR", help="write the photos there, with what was found drawn")
    for option in OPTIONS:
        command.add_argument(f"--{option}", help="as in serve_app/API.md")
    command.set_defaults(run=predict)

    batch_cli.add(commands.add_parser("batch", help=batch_cli.__doc__))

    cli.add(commands.add_parser("weights", help=cli.__doc__).add_subparsers(required=True))

    commands.add_parser("manifests", help=manifests.__doc__).set_defaults(run=manifests)

    command = commands.add_parser("check", help=check.__doc__)
    command.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="a rendered overlay or batch, see `make manifests`"
    )
    command.add_argument("--pods", type=Path, metavar="FILE", help="write the pods to FILE, for other linters")
    command.set_defaults(run=check)

    command = commands.add_parser("key", help=key.__doc__)
    command.add_argument("name", type=lambda text: text.replace(" ", "-"))
    command.set_defaults(run=key)
    return top


if __name__ == "__main__":
    sys.exit(main())
