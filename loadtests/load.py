"""`make load`: one of Locust's shapes against the service, started for it when no URL is given. Report in build/load/.

Exit code 1 when the objective is missed. With `--difference` the service is started with a plan's patch.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtests.service import ROOT, running, shipped
from loadtests.shapes import SHAPES

REPORT_EVERY_S = "10"


@contextmanager
def target(url: str | None, difference: str) -> Iterator[str]:
    """The URL, or that of a service of our own."""
    if url:
        yield url
        return
    with running(shipped(difference)) as service:
        yield service.url


def main(args: argparse.Namespace, more: list[str]) -> int:
    """Locust's exit code."""
    args.out.mkdir(parents=True, exist_ok=True)
    report = args.out / args.shape
    with target(args.url, args.difference) as url:
        typed = [sys.executable, "-m", "locust", "--locustfile", "loadtests/locustfile.py", "--headless", "--host", url]
        typed += ["--shape", args.shape, "--peak", str(args.peak), "--p95-ms", str(args.p95_ms)]
        typed += ["--csv", str(report), "--csv-full-history", "--html", f"{report}.html", "--stop-timeout", "60"]
        env = os.environ | {"LOCUST_CONSOLE_STATS_INTERVAL_SEC": REPORT_EVERY_S}
        code = subprocess.run([*typed, *more, args.workload], cwd=ROOT, env=env, check=False).returncode
    print(f"{report}.html and {report}_*.csv tell more")
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Other options are Locust's.", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="of a running service")
    parser.add_argument("--shape", choices=list(SHAPES), default="smoke")
    parser.add_argument("--workload", choices=["Open", "Closed"], default="Open")
    parser.add_argument("--peak", type=int, default=5, help="photos a second (Open), clients (Closed)")
    parser.add_argument("--p95-ms", type=float, default=1000.0)
    parser.add_argument("--difference", default="", help="YAML over serve_config.yaml, such as a plan's serve.yaml")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "load")
    sys.exit(main(*parser.parse_known_args()))
