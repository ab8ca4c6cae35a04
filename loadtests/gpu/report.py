"""What the parts found, as tables for loadtests/RESULTS.md, and the settings that follow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from loadtests.gpu.plan import Found

AS_GOOD = 0.95  # of the best rate: a smaller batch, or fewer processes, that reach it are better
PAYS = 1.05  # MPS is another daemon that can fail
SWEEP = (
    "batch", "graph ms", "eager ÷ graph", "engine ms", "img/s, graph", "1 caller", "2", "3", "÷ graph",
    "CPU-ms an image", "NMS ms",
)  # fmt: skip


def tables(found: dict[str, Found]) -> str:
    """Everything that was measured. Leaves out parts that failed or did not run."""
    parts = {
        name: {k: v for k, v in part.items() if k not in ("part", "seconds")}
        for name, part in found.items()
        if "failed" not in part
    }
    lines: list[str] = []
    if "sweep" in parts:
        lines += ["", *table(SWEEP, map(swept, parts["sweep"]["rows"]))]
    turns, mps = rates_of(parts)
    if turns:
        rows = ((str(n), f"{rate:,.0f}", f"{mps[n]:,.0f}" if mps else "-") for n, rate in turns.items())
        lines += ["", *table(("processes", "img/s, taking turns", "img/s, MPS"), rows)]
    for name in ("machine", "correct", "accuracy", "swap", "decode", "memory", "variants"):
        if name in parts:
            lines += ["", f"{name}:", *(f"    {k}: {shown_as(v)}" for k, v in parts[name].items())]
    lines += ["", "failed: " + (", ".join(name for name in found if name not in parts) or "nothing")]
    return "\n".join([*lines, *(f"recommended: {line}" for line in recommended(parts))])


def rates_of(parts: dict[str, Found]) -> tuple[dict[int, float], dict[int, float]]:
    """Images a second by number of processes: taking turns, and with MPS; empty where not measured."""
    turns, mps = (
        {int(n): rate for n, rate in parts.get(name, {}).get("img_s", {}).items()} for name in ("turns", "mps")
    )
    return turns, mps


def swept(row: Found) -> Iterable[str]:
    """One row of the sweep."""
    alone = 1000 * row["batch"] / row["graph_ms"]
    yield from (str(row["batch"]), f"{row['graph_ms']:.2f}", f"{row['eager_ms'] / row['graph_ms']:.2f}")
    yield from (f"{row['engine_ms']:.2f}", f"{alone:,.0f}", *(f"{rate:,.0f}" for rate in row["img_s"]))
    yield from (f"{max(row['img_s']) / alone:.2f}", f"{row['cpu_ms']:.2f}", f"{row['nms_ms']:.2f}")


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A table in Markdown."""
    titles = list(titles)
    return [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows)]


def shown_as(value: Any) -> str:  # noqa: ANN401 - JSON
    """Numbers with four digits that count."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {shown_as(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "/".join(map(shown_as, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def recommended(parts: dict[str, Found]) -> Iterable[str]:
    """The settings that follow from what was measured."""
    if "sweep" in parts:
        rates = {row["batch"]: row["img_s"][1] for row in parts["sweep"]["rows"]}
        yield f"max_batch_size: {smallest(rates)}"
    turns, mps = rates_of(parts)
    if turns:
        pays = bool(mps) and max(mps.values()) >= PAYS * max(turns.values())
        yield f"processes on a GPU: more than {smallest(mps if pays else turns)} add nothing"
        yield f"MPS: {('yes' if pays else 'no') if mps else 'not measured'}"
    if "variants" in parts:
        best = min(parts["variants"], key=lambda name: sum(parts["variants"][name]["graph_ms"].values()))
        yield f"fastest variant: {best}"


def smallest(rates: dict[int, float]) -> int:
    """The smallest key whose rate is as good as the best."""
    return min(key for key, rate in rates.items() if rate >= AS_GOOD * max(rates.values()))
