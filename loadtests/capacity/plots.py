"""Draws a plan, a replay, and a replay beside the real service."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from loadtests.capacity.plan import Plan
from loadtests.capacity.replay import Moment, Replayed
from loadtests.capacity.sizing import at, interval
from loadtests.capacity.station import Array, Station
from loadtests.capacity.trace import Trace
from loadtests.load.slo import Objective

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator

BLUE, ORANGE, RED, GREY = "#1f6fb4", "#e07b00", "#c62828", "#777777"


def plan(made: Plan, path: Path) -> None:
    """Left: the measured curve and its model. Right: p95 of the planned replicas over the arrival rate."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    curve, rng = made.curve, np.random.default_rng(0)
    drawn = [curve.station(rng) for _ in range(8)]
    carried = np.linspace(0.1, 0.97, 14) * curve.station().most * curve.replicas
    _band(left, drawn, (curve.replicas, 1), carried, "model")
    offered = [step.sent / step.seconds for step in curve.steps]
    left.plot(offered, [step.p95_ms for step in curve.steps], "o", color=ORANGE, label="measured")
    most = made.most.middle * curve.replicas
    left.axvline(most, ls=":", color=GREY, label=f"at most {most:.1f}/s")
    left.set(title=f"Measured with {curve.replicas} replica(s)", xlim=(0, 1.1 * max(offered)))
    carried = np.linspace(0.3 * made.peak_rps, max(1.15 * made.peak_rps, 0.98 * made.needed * made.most.middle), 14)
    fronts = math.ceil(made.needed / curve.replicas)
    _band(right, drawn, (made.needed, fronts), carried, f"{made.needed} replicas, needed at the peak")
    if made.replicas > made.needed:
        typical = [at(curve.station(), made.replicas, rate, rng, made.nodes).percentile() * 1000 for rate in carried]
        right.plot(carried, typical, "--", color=BLUE, label=f"{made.replicas} replicas, with headroom")
    right.axvline(made.peak_rps, ls=":", color=GREY, label=f"peak, {made.peak_rps:g}/s")
    right.set(title=f"Planned for {made.peak_rps:g} photos/s", xlim=(0, carried[-1]))
    for axes in (left, right):
        axes.axhline(made.p95_ms, color=RED, lw=1, label=f"objective, {made.p95_ms:g} ms")
        axes.set(xlabel="photos/s", ylabel="p95, ms", ylim=(0, 2.5 * made.p95_ms))
        axes.legend(loc="upper left", frameon=False)
    _save(figure, path)


def _band(axes: Any, drawn: Sequence[Station], of: tuple[int, int], rates: Array, label: str) -> None:  # noqa: ANN401
    """Draws p95 and its interval over the arrival rate; `of` is (replicas, fronts)."""
    rng = np.random.default_rng(0)
    found = [[at(station, of[0], rate, rng, of[1]).percentile() * 1000 for station in drawn] for rate in rates]
    spans = [interval(values, float(np.median(values))) for values in found]
    axes.fill_between(rates, [s.low for s in spans], [s.high for s in spans], color=BLUE, alpha=0.2, lw=0)
    axes.plot(rates, [s.middle for s in spans], color=BLUE, label=label)


def replay(replayed: Replayed, trace: Trace, objective: Objective, path: Path) -> None:
    """Draws arrival rate, replicas, nodes and p95 over time; red where the objective is missed."""
    figure, (rates, counts, latencies) = plt.subplots(3, 1, figsize=(11, 7), sharex=True, layout="constrained")
    unit, name = (3600.0, "hours") if replayed.length > 7200 else (60.0, "minutes")
    rates.step([s / unit for s in trace.seconds], [*trace.rates, trace.rates[-1]], where="post", color=GREY)
    rates.set(ylabel="photos/s", ylim=0)
    seconds = [moment.seconds / unit for moment in replayed.moments]
    counts.step(
        seconds, [m.wanted for m in replayed.moments], where="post", color=ORANGE, lw=1, label="replicas wanted"
    )
    counts.step(seconds, [m.running for m in replayed.moments], where="post", color=BLUE, label="replicas running")
    counts.step(seconds, [m.nodes for m in replayed.moments], where="post", color=GREY, ls="--", label="nodes")
    counts.set(ylabel="count", ylim=0)
    counts.legend(loc="upper left", frameon=False)
    windows = list(replayed.windows())
    latencies.step([w[0] / unit for w in windows], [w[3] for w in windows], where="post", color=BLUE, label="p95")
    latencies.axhline(objective.p95_ms, color=RED, lw=1, label=f"objective, {objective.p95_ms:g} ms")
    latencies.set(ylabel="p95, ms", xlabel=name, yscale="log", xlim=(0, replayed.length / unit))
    latencies.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    latencies.yaxis.set_major_formatter("{x:g}")
    latencies.minorticks_off()
    latencies.legend(loc="upper left", frameon=False)
    breaches = replayed.breaches(objective)
    for start, end, _ in breaches:
        for axes in (rates, counts, latencies):
            axes.axvspan(start / unit, end / unit, color=RED, alpha=0.15, lw=0)
    minutes = sum(end - start for start, end, _ in breaches) / 60
    rates.set_title(f"Objective missed in {minutes:.0f} of {replayed.length / 60:.0f} minutes (red)")
    _save(figure, path)


def agreement(real: Sequence[tuple[float, int, int]], simulated: Sequence[Moment], trace: Trace, path: Path) -> None:
    """Draws the replicas of Serve, (seconds, wanted, running), and those of the simulation over time."""
    figure, (counts, rates) = plt.subplots(
        2, 1, figsize=(11, 5.5), sharex=True, layout="constrained", height_ratios=[3, 1]
    )
    counts.step([r[0] for r in real], [r[2] for r in real], where="post", color=BLUE, lw=2.5, label="Serve, running")
    counts.step(
        [r[0] for r in real], [r[1] for r in real], where="post", color=BLUE, lw=1, ls=":", label="Serve, wanted"
    )
    at_s = [m.seconds for m in simulated]
    counts.step(at_s, [m.running for m in simulated], where="post", color=ORANGE, label="simulated, running")
    counts.step(
        at_s, [m.wanted for m in simulated], where="post", color=ORANGE, lw=1, ls=":", label="simulated, wanted"
    )
    counts.set(ylabel="replicas", ylim=0, yticks=range(max(r[1] for r in real) + 2))
    counts.legend(loc="upper left", frameon=False)
    rates.step(trace.seconds, [*trace.rates, trace.rates[-1]], where="post", color=GREY)
    rates.set(ylabel="photos/s", xlabel="seconds", ylim=0, xlim=(0, trace.length))
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:  # noqa: ANN401 - matplotlib
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
