"""Results as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from .swap import swap_matrix

PALE, DARK = (239, 244, 250), (8, 48, 107)
CONDITIONS = ("unpruned", "backbone", "matched")


def results_table(results: Mapping[str, Any]) -> Table:
    """One row per domain and one for their mean: recall (for facts) and perplexity of every condition."""
    domains = results["domains"]
    first = next(iter(domains.values()))
    conditions = [name for name in CONDITIONS if name in first]
    figures = [name for name in ("recall", "perplexity") if name in first["unpruned"]]
    table = Table(title="domain by domain")
    table.add_column("domain", overflow="fold")
    for figure in figures:
        for condition in conditions:
            table.add_column(f"{figure}\n{condition}", justify="right", overflow="fold")
    for domain, result in domains.items():
        table.add_row(
            domain,
            *(
                format_figure(figure, result[condition][figure])
                for figure in figures
                for condition in conditions
            ),
        )
    if len(domains) > 1:
        mean = results["mean"]
        table.add_section()
        table.add_row(
            "mean",
            *(
                format_figure(figure, mean[condition][figure])
                for figure in figures
                for condition in conditions
            ),
        )
    return table


def retention_table(retention: Mapping[str, Any]) -> Table:
    """What is kept of general text, under the bare backbone, the routed memory and every one."""
    rows = {name: retention[name] for name in ("unpruned", "backbone", "auto") if name in retention}
    rows |= {f"memory {name}": figures for name, figures in retention.get("memories", {}).items()}
    table = Table(title="retention text, held out")
    for name in ("condition", "KL", "perplexity"):
        table.add_column(name, justify="left" if name == "condition" else "right", overflow="fold")
    for name, figures in rows.items():
        kl = "inf" if figures["kl"] is None else f"{figures['kl']:.4f}"
        table.add_row(name, kl, format_figure("perplexity", figures["perplexity"]))
    return table


def router_table(figures: Mapping[str, Any]) -> Table:
    """The confusion matrix of a router, from stage `route`: one row per domain, one column per choice."""
    confusion = figures["confusion"]
    chosen = [*confusion, *sorted({name for row in confusion.values() for name in row} - set(confusion))]
    table = Table(title="router: held-out texts")
    table.add_column("text of \\ chosen", overflow="fold")
    for name in chosen:
        table.add_column(name, justify="right", overflow="fold")
    for label, row in confusion.items():
        table.add_row(label, *(str(row.get(name, "")) for name in chosen))
    return table


def router_summary(figures: Mapping[str, Any]) -> str:
    """Accuracy, calibration and latency of a router."""
    return (
        f"The router is right on {figures['accuracy']:.1%} of {figures['documents']:,} held-out texts; "
        f"calibration error {figures['calibration_error']:.3f}, {figures['milliseconds']:.2f} ms per text."
    )


def swap_table(results: Mapping[str, Any], figure: str) -> Table:
    """The swap matrix: one row per domain, one column per memory; better figures have darker cells, and the
    matched one is bold."""
    table = Table(title=f"swap matrix: {figure}, every memory on every domain")
    table.add_column("domain \\ memory", overflow="fold")
    for memory in results["domains"]:
        table.add_column(memory, justify="right", overflow="fold")
    rows = swap_matrix(results, figure)
    values = [value for row in rows for value in row if math.isfinite(value)] or [math.inf]
    worst, best = (min(values), max(values)) if figure == "recall" else (max(values), min(values))
    for i, (domain, row) in enumerate(zip(results["domains"], rows, strict=True)):
        cells = [_shaded(figure, value, worst, best, bold=i == j) for j, value in enumerate(row)]
        table.add_row(domain, *cells)
    return table


def _shaded(figure: str, value: float, worst: float, best: float, *, bold: bool) -> Text:
    share = 1.0 if best == worst else (value - worst) / (best - worst) if math.isfinite(value) else 0.0
    red, green, blue = (round(pale + (dark - pale) * share) for pale, dark in zip(PALE, DARK, strict=True))
    ink = "white" if share > 0.5 else "black"
    return Text(
        format_figure(figure, value), style=f"{'bold ' if bold else ''}{ink} on rgb({red},{green},{blue})"
    )


def format_figure(figure: str, value: float | None) -> str:
    """A figure as text; None, which JSON holds for a value beyond the range of a float, becomes `inf`."""
    if value is None:
        return "inf"
    return f"{value:.1%}" if figure == "recall" else f"{value:.2f}"
