"""Converts `kuberay/monitoring/{dashboards,alerts}.yaml` to the formats of Grafana and Prometheus.

Only converts. The queries and thresholds are in the two files.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from serve_app.settings import ROOT

FOLDER = ROOT / "kuberay" / "monitoring"
WIDTH, HEIGHT = 12, 8  # size of a panel in Grafana's grid, which has 24 columns
Yaml = dict[str, Any]


def source(name: str) -> Yaml:
    """The content of `NAME.yaml` in the monitoring folder."""
    content: Yaml = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return content


def rules() -> Yaml:
    """Prometheus' rule file: one recording rule for each ratio and window, then the alerts."""
    alerts = source("alerts")
    records = [
        {"record": f"{name}:{window}", "expr": expr.replace("$window", window)}
        for name, expr in alerts["ratios"].items()
        for window in alerts["windows"]
    ]
    # Prometheus evaluates the rules of a group in order, so with one group an alert uses ratios of the same evaluation.
    made = [alert(one, alerts["runbooks"]) for one in alerts["alerts"]]
    return {"groups": [{"name": "recognition", "rules": records + made}]}


def alert(one: Yaml, runbooks: str) -> Yaml:
    """One alerting rule with its labels, and the address of its runbook on the page `runbooks`."""
    annotations = {"summary": one["summary"], "runbook_url": f"{runbooks}#{one['alert'].lower()}"}
    wait = {"for": one["for"]} if "for" in one else {}
    labels = {"severity": one["severity"], "service": "recognition"}
    return {"alert": one["alert"], "expr": one["expr"], **wait, "labels": labels, "annotations": annotations}


def dashboards() -> dict[str, Yaml]:
    """Grafana's JSON model of each dashboard, by name."""
    return {name: dashboard(name, one) for name, one in source("dashboards").items()}


def dashboard(name: str, one: Yaml) -> Yaml:
    """Grafana's JSON model of one dashboard: two panels in a row, and a variable to choose the data source."""
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
    """Grafana's JSON model of panel `number`, counted from 0. Its description says if it needs a GPU or a cluster."""
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
    """The Kubernetes objects: a PrometheusRule, and ConfigMaps that Grafana's sidecar finds by their label."""
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
