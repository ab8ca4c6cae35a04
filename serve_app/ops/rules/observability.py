"""Rules about seeing: alerts must reach somebody, and traces their collector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from serve_app.ops.overlay import Overlay
from serve_app.ops.rendered import Finding
from serve_app.settings import ROOT

VALUES = ROOT / "kuberay" / "addons" / "monitoring.yaml"
MANAGED = ("kubeControllerManager", "kubeScheduler", "kubeProxy")  # AWS runs them, and Prometheus cannot reach them
OTLP = 4318  # OTLP over HTTP


def receivers(overlay: Overlay) -> Iterator[Finding]:
    """Alertmanager must send our alerts to somebody; its chart's own receiver is empty."""
    if not overlay.kind("PrometheusRule"):
        return
    config: dict[str, Any] = overlay.monitoring.get("alertmanager", {}).get("config", {})
    known = {one["name"]: one for one in config.get("receivers", [])}
    default = config.get("route", {}).get("receiver")
    if not any(key.endswith("_configs") for key in known.get(default, {})):
        why = "Alerts reach nobody: Alertmanager's default route ends at a receiver that sends nothing"
        yield Finding(VALUES, 1, why, "name a receiver with an address in alertmanager.config.route.receiver")


def false_alarms(overlay: Overlay) -> Iterator[Finding]:
    """On Auto Mode, the chart's alerts for parts that AWS runs would fire for ever."""
    left = [part for part in MANAGED if overlay.monitoring.get(part, {}).get("enabled", True)]
    if overlay.kind("NodePool") and overlay.kind("PrometheusRule") and left:
        why = f"Alerts for {', '.join(left)} fire for ever: AWS runs these parts, and Prometheus cannot reach them"
        yield Finding(VALUES, 1, why, "set enabled: false for each of them")


def runbooks(overlay: Overlay) -> Iterator[Finding]:
    """Whoever gets an alert must be able to open its runbook from the message."""
    rules = [r for o in overlay.kind("PrometheusRule") for g in o["spec"]["groups"] for r in g["rules"] if "alert" in r]
    if any(not rule["annotations"].get("runbook_url", "").startswith("https://") for rule in rules):
        why = "The link to the runbook cannot be opened from an alert's message"
        yield overlay.finding("alert", why, "set `runbooks` in kuberay/monitoring/alerts.yaml to an https address")


def traces(overlay: Overlay) -> Iterator[Finding]:
    """A network policy for egress drops traces unless it allows OTLP's port."""
    if overlay.serve.get("tracing_config", {}).get("enabled") and OTLP not in overlay.egress_ports():
        why = "The egress policies drop every trace"
        yield overlay.finding("egress", why, f"allow port {OTLP} to the collector")


RULES = (receivers, false_alarms, runbooks, traces)
