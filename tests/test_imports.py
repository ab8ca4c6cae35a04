"""`make lint` refuses an import that goes up, and a package where it does not belong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter, with the contracts of this repository, in a copy of it."""
    typed = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"]
    env = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(typed, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("file", "planted", "broken"),
    [
        ("vision/image.py", "from serve_app.http import api", "Imports go down"),
        ("weights/loader.py", "from serve_app.graph.detector import Detector", "Imports go down"),
        ("graph/payloads.py", "import ray", "Ray stays"),
        ("http/predict.py", "import torch", "torch, Ultralytics and OpenVINO stay"),
        ("graph/live_weights.py", "import boto3", "S3 stays"),
        ("weights/store.py", "from fastapi import Request", "HTTP stays"),
    ],
)
def test_a_planted_import_is_refused(file: str, planted: str, broken: str, tmp_path: Path) -> None:
    for name in ("serve_app", "loadtests", "models"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / "serve_app" / file
    path.write_text(f"{path.read_text()}\n\n{planted}\n")
    ended = lint(tmp_path)
    assert ended.returncode == 1
    (contract,) = re.findall(r"^(.+) BROKEN", ended.stdout, re.MULTILINE)
    assert contract.startswith(broken)
