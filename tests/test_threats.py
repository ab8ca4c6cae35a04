"""The threat model names tests that exist; and what no other test shows of it."""

from __future__ import annotations

import ast
import re
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest
import yaml

from loadtests.service import Service, dashboard
from tests.conftest import ROOT

LINES = [line for line in (ROOT / "serve_app" / "THREATS.md").read_text().splitlines() if line.startswith("| ")][1:]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split("|")[2].strip()[:40])
def test_every_threat_names_tests_that_exist(line: str) -> None:
    named = NAMED.findall(line)
    assert named
    for file, name in named:
        parsed = ast.parse((ROOT / file).read_text())
        assert name in {node.name for node in ast.walk(parsed) if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"


def test_every_module_it_names_exists() -> None:
    for name in re.findall(r"`((?!tests/)[\w/]+\.py)`", "\n".join(LINES)):
        assert (ROOT / "serve_app" / name).is_file(), name


def test_ray_asks_for_its_token(service: Service) -> None:
    """Who may talk to the dashboard runs code."""
    for headers in ({}, {"Authorization": "Bearer guessed"}):
        for path in ("/api/serve/applications/", "/api/jobs/"):
            answer = httpx.get(dashboard(service) + path, headers=headers, timeout=30, trust_env=False)
            assert answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN), path


def test_only_the_serve_port_is_open_to_all(rendered: dict[str, Path]) -> None:
    for overlay, file in rendered.items():
        policies = [one for one in yaml.safe_load_all(file.read_text()) if one["kind"] == "NetworkPolicy"]
        rules = [rule for policy in policies for rule in policy["spec"].get("ingress", [])]
        assert any("Ingress" in policy["spec"]["policyTypes"] for policy in policies), overlay
        assert [rule["ports"] for rule in rules if "from" not in rule] == [[{"port": 8000}]], overlay
        dashboards = [rule for rule in rules if {"port": 8265} in rule.get("ports", [])]
        assert [list(rule["from"][0]) for rule in dashboards] == [["namespaceSelector"]], overlay
