"""What the documents claim is true: names, links, and every example, run against the real service."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from pydantic import BaseModel

from loadtests import s3_server
from loadtests.service import Service, config, deploy, model
from serve_app.errors import AppError, WeightsError
from serve_app.ops import overlay
from serve_app.settings import AppSettings, DetectorSettings, PredictOptions
from serve_app.vision import sample_photos
from tests.conftest import ROOT, eventually
from tests.http.test_errors import leaves


class Block(NamedTuple):
    """An example: its language, the mark beside that, and the `text` below it, which is what it prints."""

    file: str
    line: int
    language: str
    mark: str
    text: str
    prints: str | None


URL = "http://127.0.0.1:8000"
FENCE = re.compile(r"^```(\w*) ?(.*)\n((?:.*\n)*?)^```$(?:\n\n```text\n((?:.*\n)*?)^```$)?", re.MULTILINE)
FILES = [p for p in sorted(ROOT.rglob("*.md")) if not {"build", "cache"} & set(p.parts) and "/." not in str(p)]
TEXTS = {str(p.relative_to(ROOT)): p.read_text() for p in FILES}
BLOCKS = [
    Block(file, text.count("\n", 0, found.start()) + 1, found[1], found[2], found[3], found[4])
    for file, text in TEXTS.items()
    for found in FENCE.finditer(text)
]
MARKS = {"cluster", "aws", "network"}  # what it needs, and is not here
RUNNERS = {"sh": ["bash", "-euo", "pipefail"], "python": [sys.executable], "js": ["node"]}
# What is long, or is run as such somewhere else: a block of nothing but these.
ELSEWHERE = {
    "make serve": "tests/ops/test_launch.py",
    "make load": "tests/loadtests/test_load.py",
    "make capacity": "tests/loadtests/test_plan.py",
    ".venv/bin/python -m loadtests.capacity": "tests/loadtests/test_plan.py",
    "make observe": "tests/ops/test_monitoring.py",
    "make manifests": "tests/ops/test_manifests.py",
    "make release": "tests/release/test_release.py",
    "make drill": "tests/loadtests/test_drill.py",
    "make overload": "tests/http/test_overload.py",
    "make accuracy": "tests/http/test_predict.py",
    "git push": "tests/release/test_release.py",
}


def elsewhere(block: Block) -> list[str]:
    """The files that run the block's lines; empty when one of them must be run here."""
    lines = [line for line in block.text.replace("\\\n", "").splitlines() if line.strip()]
    found = [next((test for begin, test in ELSEWHERE.items() if line.startswith(begin)), "") for line in lines]
    return found if all(found) else []


EXAMPLES = [b for b in BLOCKS if b.language in RUNNERS and b.mark not in MARKS and not elsewhere(b)]


def rows(file: str) -> list[list[str]]:
    """Of its tables, those that begin with a name."""
    return [[c.strip() for c in line.strip("|").split("|")] for line in TEXTS[file].splitlines() if line[:3] == "| `"]


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("serve_app/README.md", AppSettings),
        ("serve_app/README.md", DetectorSettings),
        ("serve_app/API.md", PredictOptions),
    ],
)
def test_every_setting_is_documented_with_its_default(file: str, settings: type[BaseModel]) -> None:
    for name, field in settings.model_fields.items():
        found = [row[1:] for row in rows(file) if row[0] == f"`{name}`"]
        assert found, f"{name} is not in {file}"
        meaning = (field.description or "?").split(",")[0].split(";")[0]
        default = "" if field.default is None else str(field.default)
        assert any(meaning in row[1] and default in row[0] for row in found), name


def test_every_reason_of_a_refused_swap_is_documented() -> None:
    reasons = {row[0].strip("`") for row in rows("serve_app/README.md")}
    assert reasons >= {kind.reason for kind in WeightsError.__subclasses__()}


@pytest.mark.parametrize("folder", ["serve_app", "loadtests"])
def test_the_tree_names_every_module_in_its_package(folder: str) -> None:
    package, named = "", set()
    for line in TEXTS[f"{folder}/README.md"].splitlines():
        if heading := re.match(r"`?([\w/]+/)`?(,| {2})", line):
            package = heading[1].removeprefix(f"{folder}/")
        elif module := re.match(r"(\w+\.py) ", line):
            named.add(package + module[1])
    modules = (p.relative_to(ROOT / folder) for p in (ROOT / folder).rglob("*.py"))
    assert named == {str(path) for path in modules if path.name != "__init__.py"}


def test_every_step_of_a_photos_way_is_in_the_code() -> None:
    (block,) = (b for b in BLOCKS if b.text.startswith("http/proxy_middleware.py:"))
    steps = re.findall(r"([\w/]+\.py):([\w.]+)", block.text)
    assert len(block.text.splitlines()) == 8 <= len(steps)
    for file, name in steps:
        inside: Any = ast.parse((ROOT / "serve_app" / file).read_text())
        for part in name.split("."):
            (inside,) = (node for node in inside.body if getattr(node, "name", "") == part)


def test_every_error_code_is_documented() -> None:
    codes = " ".join(row[0] for row in [line.split("|")[2:3] for line in TEXTS["serve_app/API.md"].splitlines()] if row)
    for kind in leaves(AppError):
        assert f"`{kind.code}`" in codes


def test_every_metric_is_documented() -> None:
    source = (ROOT / "serve_app" / "metrics.py").read_text()
    names = set(re.findall(r'"(recognition_\w+)"', source))
    assert names
    assert names == {r[0].strip("`") for r in rows("serve_app/README.md") if r[0].startswith("`recognition_")}


@pytest.mark.parametrize("file", TEXTS)
def test_every_make_target_in_the_docs_exists(file: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z0-9-]+)", TEXTS[file], re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"


def anchors(file: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", TEXTS[file]), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", TEXTS)
def test_every_link_leads_somewhere(file: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", TEXTS[file])):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / file).parent / path if path else ROOT / file
        assert target.exists(), link
        assert not anchor or anchor in anchors(str(target.resolve().relative_to(ROOT))), link


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"{b.file}:{b.line}")
def test_every_block_is_run_or_says_what_it_needs(block: Block) -> None:
    assert block.language in {*RUNNERS, "", "json", "yaml", "hcl"}
    assert block.language == "yaml" or block.mark in {"", *MARKS}
    for test in elsewhere(block):
        assert (ROOT / test).is_file()


class Desk(NamedTuple):
    """Where a reader sits: a folder like the repository's root, and the environment of a shell there."""

    folder: Path
    env: dict[str, str]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, service: Service) -> Iterator[Desk]:
    """With the photos that examples name, and a `curl` that fails where the service says no."""
    folder, mine, before = tmp_path_factory.mktemp("desk"), ROOT / "models" / "mine.pt", model(service)
    port = int(service.url.rpartition(":")[2])
    (folder / "serve_config.yaml").write_text((ROOT / "serve_config.yaml").read_text().replace("8000", str(port)))
    for name, target in {".venv": sys.prefix, "models": ROOT / "models", "tests": ROOT / "tests"}.items():
        (folder / name).symlink_to(target)
    for place in ("holiday", "street", "build/capacity"):
        (folder / place).mkdir(parents=True)
    for photo in (folder, folder / "holiday", folder / "street"):
        (photo / "bus.jpg").write_bytes(sample_photos.bus())
    shutil.copy(ROOT / "tests" / "loadtests" / "curve.json", folder / "build" / "capacity")
    shutil.copy(ROOT / "models" / "default.pt", mine)
    (folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
    env = os.environ | {"CURL_HOME": str(folder), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "KEY": "any"}
    env |= {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": ""}
    yield Desk(folder, env)
    deploy(service, config(port))
    eventually(lambda: model(service)["uri"] == before["uri"])
    mine.unlink()


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """The environment in which S3 is moto's."""
    with s3_server.bucket() as bucket:
        yield {**s3_server.ENV, "AWS_ENDPOINT_URL": bucket.endpoint}


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda b: f"{b.file}:{b.line}")
def test_every_example_does_what_it_says(
    block: Block, desk: Desk, service: Service, request: pytest.FixtureRequest
) -> None:
    runner = RUNNERS[block.language]
    if not shutil.which(runner[0]):
        pytest.skip(f"no {runner[0]}")
    env = desk.env | (request.getfixturevalue("store") if "s3://BUCKET" in block.text else {})
    script = desk.folder / f"example.{'mjs' if block.language == 'js' else block.language}"
    text = block.text.replace(URL, service.url).replace("BUCKET", s3_server.BUCKET)
    text = text.replace("serve_app predict", f"serve_app predict --url {service.url}")
    # Other tests run services beside this one.
    script.write_text(text.replace("serve_app deploy", f"serve_app deploy --address {service.url}"))
    ran = subprocess.run(
        [*runner, str(script)], cwd=desk.folder, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    if block.prints:
        assert re.search(re.escape(block.prints.strip()).replace("…", ".*"), ran.stdout), ran.stdout


def skeleton(value: Any) -> Any:
    """A JSON value without its values; of a list the first."""
    if isinstance(value, dict):
        return {key: skeleton(one) for key, one in value.items()}
    return [skeleton(one) for one in value[:1]] if isinstance(value, list) else type(value).__name__


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "json"], ids=lambda b: f"{b.file}:{b.line}")
def test_an_answer_has_the_shape_that_is_shown(block: Block, client: httpx.Client, bus: bytes) -> None:
    answer = client.post("/v1/predict", files={"file": bus})
    assert skeleton(answer.json()) == skeleton(json.loads(block.text))


@pytest.mark.parametrize("file", ["kuberay/README.md", "kuberay/OPERATIONS.md"])
def test_a_cluster_takes_the_keys_as_the_guides_make_them(rendered: dict[str, Path], file: str) -> None:
    """The Secret and its file, which the overlays mount and the service reads."""
    (name, key), *_ = re.findall(r"create secret generic (\S+) --from-file=(keys\S*)", TEXTS[file])
    for one in ("staging", "production"):
        built = overlay.read(rendered[one])
        pod = built.workers["template"]["spec"]
        (volume,) = (v for v in pod["volumes"] if v.get("secret", {}).get("secretName") == name)
        (mount,) = (m for m in pod["containers"][0]["volumeMounts"] if m["name"] == volume["name"])
        assert built.args["api_keys_file"] == f"{mount['mountPath']}/{key}"
