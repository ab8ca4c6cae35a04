"""Draws the dashboards as pictures from Prometheus's answers, without Grafana."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from loadtests.monitoring.prometheus import Labels, Prometheus
from serve_app.ops import monitoring

mpl.use("Agg")
SCALE: dict[str, tuple[float, str]] = {
    "s": (1e3, "ms"), "bytes": (1e-6, "MB"), "percentunit": (100, "%"), "percent": (1, "%"),
    "reqps": (1, "requests/s"), "ops": (1, "1/s"), "short": (1, ""),
}  # fmt: skip
COLUMNS, LEGEND = 3, 28


def name(legend: str, labels: Labels) -> str:
    """A legend with its labels filled in as Grafana does, cut at LEGEND characters."""
    legend = re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend)
    return legend if len(legend) <= LEGEND else legend[: LEGEND - 1] + "…"


def draw(prometheus: Prometheus, board: str, file: Path, seconds: float) -> None:
    """Draws one dashboard over the last `seconds` as a PNG, without the panels that need a GPU or a cluster."""
    content = monitoring.source("dashboards")[board]
    panels = [one for one in content["panels"] if "needs" not in one]
    rows = -(-len(panels) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(15, 2.9 * rows), squeeze=False, layout="constrained")
    figure.suptitle(content["title"])
    figure.supxlabel("seconds from now", fontsize=9)
    for one, axis in zip(panels, axes.flat, strict=False):
        (stat if one.get("stat") else lines)(prometheus, one, axis, seconds)
        axis.set_title(one["title"], fontsize=10, loc="left")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    figure.savefig(file, dpi=100)
    plt.close(figure)


def lines(prometheus: Prometheus, one: dict[str, Any], axis: Axes, seconds: float) -> None:
    """Draws a time series panel."""
    factor, unit = SCALE[one["unit"]]
    for legend, expr in one["queries"].items():
        for labels, points in prometheus.over(expr, seconds):
            at, values = zip(*points, strict=True)
            axis.plot(at, [value * factor for value in values], label=name(legend, labels))
    axis.set_ylabel(unit)
    axis.set_xlim(-seconds, 0)
    axis.margins(y=0.15)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(fontsize=7)
    else:
        axis.text(0.5, 0.5, "none", ha="center", transform=axis.transAxes)


def stat(prometheus: Prometheus, one: dict[str, Any], axis: Axes, _seconds: float) -> None:
    """Draws a stat panel: the current values."""
    factor, unit = SCALE[one["unit"]]
    found = [(name(legend, labels), v) for legend, expr in one["queries"].items() for labels, v in prometheus.now(expr)]
    text = "\n".join(f"{legend}: {value * factor:.1f} {unit}" for legend, value in found)
    axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=15)
    axis.set_axis_off()
