"""Alerts as Prometheus evaluates them: each fires when it should, is quiet when it should be, and has a runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.ops import monitoring

ALERTS = [one["alert"] for one in monitoring.source("alerts")["alerts"]]
CASES: dict[str, dict[str, Any]] = monitoring.source("alerts_test")
UNIT = {"1m": 1, "5m": 5, "10m": 10}


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "rules.yml"
    path.write_text(yaml.safe_dump(monitoring.rules(), sort_keys=False))
    return path


def promtool(*typed: str | Path) -> str:
    if not shutil.which("promtool"):
        pytest.skip("no promtool: Debian's package prometheus has it")
    ended = subprocess.run(["promtool", *map(str, typed)], capture_output=True, text=True, check=False)
    assert not ended.returncode, ended.stdout + ended.stderr
    return ended.stdout


def test_the_rules_are_prometheus_rules(rules: Path) -> None:
    assert "SUCCESS" in promtool("check", "rules", rules)


def samples(notation: str) -> int:
    """How many intervals a series of promtool lasts."""
    return sum(int(part.partition("x")[2] or 0) + 1 for part in notation.split())


@pytest.mark.parametrize("name", ALERTS)
def test_it_fires_and_it_is_quiet(name: str, rules: Path) -> None:
    case = CASES[name]
    tests = []
    for wanted, kind in ((1, "fires"), (0, "quiet")):
        for series in case[kind]:
            last = max(map(samples, series.values())) - 1
            expr = f'count(count by (alertname) (ALERTS{{alertname="{name}", alertstate="firing"}})) or vector(0)'
            tests.append(
                {
                    "interval": case["every"],
                    "input_series": [{"series": one, "values": values} for one, values in series.items()],
                    "promql_expr_test": [
                        {
                            "expr": expr,
                            "eval_time": f"{(last - 1) * UNIT[case['every']]}m",
                            "exp_samples": [{"labels": "{}", "value": wanted}],
                        }
                    ],
                }
            )
    path = rules.with_name(f"{name}.yml")
    path.write_text(yaml.safe_dump({"rule_files": [rules.name], "evaluation_interval": case["every"], "tests": tests}))
    promtool("test", "rules", path)


def test_every_case_has_its_alert_and_every_alert_its_runbook() -> None:
    assert list(CASES) == ALERTS
    runbooks = (monitoring.FOLDER / "docs" / "runbooks.md").read_text()
    assert re.findall(r"^## (\w+)$", runbooks, re.MULTILINE) == ALERTS


def test_an_alert_links_to_its_runbook_on_the_web() -> None:
    linked = {
        r["alert"]: r["annotations"]["runbook_url"] for r in monitoring.rules()["groups"][0]["rules"] if "alert" in r
    }
    page = monitoring.source("alerts")["runbooks"]
    assert linked == {name: f"{page}#{name.lower()}" for name in ALERTS}
    assert page.startswith("https://")
    assert page.endswith("/" + str((monitoring.FOLDER / "docs" / "runbooks.md").relative_to(monitoring.ROOT)))
