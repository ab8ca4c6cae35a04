"""`kuberay/monitoring/{dashboards,alerts}.yaml` in the forms that Grafana and Prometheus read."""

from __future__ import annotations

import json
from typing import Any

import yaml

from serve_app.weights import ROOT

FOLDER = ROOT / "kuberay" / "monitoring"
RUNBOOKS = "kuberay/monitoring/docs/runbooks.md"
WIDTH, HEIGHT = 12, 8  # of a panel, in Grafana's grid of 24 columns
Yaml = dict[str, Any]


def source(name: str) -> Yaml:
    """One of the two files."""
    content: Yaml = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return content


def rules() -> Yaml:
    """As `promtool check rules` reads them: each ratio once for each window, then the alerts."""
    alerts = source("alerts")
    records = [
        {"record": f"{name}:{window}", "expr": expr.replace("$window", window)}
        for name, expr in alerts["ratios"].items()
        for window in alerts["windows"]
    ]
    # One group: Prometheus evaluates it in order, so that an alert sees the ratios of its own moment.
    return {"groups": [{"name": "recognition", "rules": records + [alert(one) for one in alerts["alerts"]]}]}


def alert(one: Yaml) -> Yaml:
    """One alert with its labels and annotations."""
    annotations = {"summary": one["summary"], "runbook": f"{RUNBOOKS}#{one['alert'].lower()}"}
    wait = {"for": one["for"]} if "for" in one else {}
    labels = {"severity": one["severity"], "service": "recognition"}
    return {"alert": one["alert"], "expr": one["expr"], **wait, "labels": labels, "annotations": annotations}


def dashboards() -> dict[str, Yaml]:
    """Grafana's JSON model of each, by name."""
    return {name: dashboard(name, one) for name, one in source("dashboards").items()}


def dashboard(name: str, one: Yaml) -> Yaml:
    """Panels two in a row; the data source is chosen on the page."""
    variable = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}
    return {
        "uid": f"recognition-{name}",
        "title": one["title"],
        "tags": ["recognition"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [variable]},
        "panels": [panel(number, each) for number, each in enumerate(one["panels"])],
    }


def panel(number: int, one: Yaml) -> Yaml:
    """One panel; what needs a GPU or a cluster says so."""
    draw: Yaml = {"fillOpacity": 30 if one.get("stack") else 10, "showPoints": "never"}
    draw |= {"stacking": {"mode": "normal"}} if one.get("stack") else {}
    found = {
        "id": number + 1,
        "type": "stat" if one.get("stat") else "timeseries",
        "title": one["title"],
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": number % 2 * WIDTH, "y": number // 2 * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": one["unit"], "min": 0, "custom": draw}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + n), "legendFormat": legend, "expr": expr}
            for n, (legend, expr) in enumerate(one["queries"].items())
        ],
    }
    return found | ({"description": f"Needs a {one['needs']}."} if "needs" in one else {})


def objects() -> list[Yaml]:
    """For a cluster: a PrometheusRule, and ConfigMaps that Grafana's sidecar finds by their label."""
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "recognition"},
        "spec": rules(),
    }
    maps = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"recognition-dashboard-{name}", "labels": {"grafana_dashboard": "1"}},
            "data": {f"recognition-{name}.json": json.dumps(content, indent=1)},
        }
        for name, content in dashboards().items()
    ]
    return [rule, *maps]
