"""What the README claims about files, settings, errors and metrics is true."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel

from serve_app.errors import AppError, WeightsError
from serve_app.settings import AppSettings, DetectorSettings, PredictOptions
from tests.conftest import ROOT
from tests.test_errors import leaves

README = (ROOT / "README.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("model", [AppSettings, DetectorSettings, PredictOptions])
def test_every_setting_is_documented_with_its_default(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        rows = [row[1:] for row in ROWS if row[0] == f"`{name}`"]
        assert rows, f"{name} is not in the README"
        meaning = (field.description or "?").split(",")[0].split(";")[0]
        default = "" if field.default is None else str(field.default)
        assert any(meaning in row[1] and default in row[0] for row in rows), name


def test_every_reason_of_a_refused_swap_is_documented() -> None:
    for kind in WeightsError.__subclasses__():
        assert f"`{kind.reason}`" in README


def test_the_tree_names_every_module() -> None:
    tree = README.split("## Where things are")[1].split("```")[1]
    named = set(re.findall(r"^  (\w+\.py) ", tree, re.MULTILINE))
    assert named == {p.name for p in (ROOT / "serve_app").glob("*.py")} - {"__init__.py"}


def test_every_error_code_is_documented() -> None:
    for kind in leaves(AppError):
        assert f"`{kind.code}`" in README


def test_every_metric_is_documented() -> None:
    source = (ROOT / "serve_app" / "metrics.py").read_text()
    names = set(re.findall(r'"(recognition_\w+)"', source))
    assert names
    assert names == {row[0].strip("`") for row in ROWS if row[0].startswith("`recognition_")}


def test_every_make_target_in_the_docs_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for document in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"`?\bmake ([a-z-]+)`", (ROOT / document).read_text()):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{document} names make {target}"
