"""`make load`: runs a load shape against the service with Locust, and writes reports to build/load/.

Starts a service unless `--url` is given; `--difference` changes its configuration, for example by a plan's patch. Exits
with 1 when the objective is missed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtests.load.shapes import SHAPES
from loadtests.service import ROOT, running, shipped

LOCUSTFILE = "loadtests/load/locustfile.py"
REPORT_EVERY_S = "10"


@contextmanager
def target(url: str | None, difference: str) -> Iterator[str]:
    """Yields the URL, or that of a service that it starts and stops."""
    if url:
        yield url
        return
    with running(shipped(difference)) as service:
        yield service.url


def main(args: argparse.Namespace, more: list[str]) -> int:
    """Runs Locust; `more` are options of its own. Returns its exit code."""
    args.out.mkdir(parents=True, exist_ok=True)
    report = args.out / args.shape
    with target(args.url, args.difference) as url:
        command = [sys.executable, "-m", "locust", "--locustfile", LOCUSTFILE, "--headless", "--host", url]
        command += ["--shape", args.shape, "--peak", str(args.peak), "--p95-ms", str(args.p95_ms)]
        command += ["--csv", str(report), "--csv-full-history", "--html", f"{report}.html", "--stop-timeout", "60"]
        env = os.environ | {"LOCUST_CONSOLE_STATS_INTERVAL_SEC": REPORT_EVERY_S}
        code = subprocess.run([*command, *more, args.workload], cwd=ROOT, env=env, check=False).returncode
    print(f"reports: {report}.html, {report}_*.csv")
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Other options are Locust's.", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="URL of a running service; one is started when not given")
    parser.add_argument("--shape", choices=list(SHAPES), default="smoke")
    parser.add_argument("--workload", choices=["Open", "Closed"], default="Open")
    parser.add_argument("--peak", type=int, default=5, help="photos a second (Open), clients (Closed)")
    parser.add_argument("--p95-ms", type=float, default=1000.0)
    parser.add_argument("--difference", default="", help="YAML merged over serve_config.yaml, such as a plan's")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "load")
    sys.exit(main(*parser.parse_known_args()))
