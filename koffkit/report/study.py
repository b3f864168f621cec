"""The summary of a study as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from ..errors import UsageError
from .against import in_words, loaded_in_words

NAMES = {"recall": "fact recall", "perplexity": "perplexity", "kl": "KL to the unpruned model, nats a token"}
COLOUR, PALE = "#1f5fa8", "#b9c6d8"


def study_table(summary: Mapping[str, Any], title: str) -> Table:
    """One row for each row of the study, means and standard deviations over seeds."""
    figures = _figures(summary)
    table = Table(title=title)
    table.add_column("", overflow="fold")
    table.add_column("loaded\nparameters", justify="right")
    for figure in figures:
        table.add_column(figure, justify="right")
    table.add_column("KL, backbone\nalone", justify="right")
    table.add_column("KL, wrong\nmemory", justify="right")
    first = next(iter(summary.values()))
    if "unpruned" in first:
        cells = [_cell(first["unpruned"], figure) for figure in figures]
        table.add_row("unpruned", "", *cells, "", "")
        table.add_section()
    for name, row in summary.items():
        cells = [_cell(row["served"], figure) for figure in figures]
        others = [_cell(row.get(condition, {}), "kl") for condition in ("backbone", "wrong")]
        table.add_row(name, f"{row['parameters']:,}", *cells, *others)
    return table


def _figures(summary: Mapping[str, Any]) -> list[str]:
    rows = [row["served"] for row in summary.values()]
    return [figure for figure in ("recall", "perplexity", "kl") if all(figure in row for row in rows)]


def _cell(figures: Mapping[str, Any], figure: str) -> str:
    if figure not in figures:
        return ""
    mean, std, count = (figures[figure][key] for key in ("mean", "std", "values"))
    digits = {"recall": ".1%", "perplexity": ".2f", "kl": ".4f"}[figure]
    return format(mean, digits) + (f" ± {format(std, digits)}" if len(count) > 1 else "")


def equal_size_verdict(summary: Mapping[str, Any]) -> dict[str, list[str]]:
    """Of every row with memories, how it does against the row of its size: `lines`, and `warnings` about
    those whose mean KL is higher. A row that prunes nothing loads more and has another aim than a low KL, so
    it is not warned of."""
    said: dict[str, list[str]] = {"lines": [], "warnings": []}
    for name, row in summary.items():
        if "against" not in row:
            continue
        found, seeds = row["against"], row["against"]["seeds"]
        baseline = found["row"] + loaded_in_words(summary[found["row"]]["parameters"], row["parameters"])
        words = f"{in_words(found)}; {'1 seed' if seeds == 1 else f'mean of {seeds} seeds'}."
        if row["sparsity"] > 0 and found.get("kl", {}).get("worse"):
            said["warnings"].append(f"{name} loses to {baseline}: {words}")
        else:
            said["lines"].append(f"{name} against {baseline}: {words}")
    return said


def draw_study(summary: Mapping[str, Any], path: Path, title: str) -> None:
    """Every row's figures, a dot for each seed and a line at the mean; pale: the backbone alone.

    Raises:
        UsageError: matplotlib, the extra `plot`, is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("drawing needs the extra: pip install 'koffkit[plot]'.") from None
    names, figures = list(summary), [name for name in _figures(summary) if name != "perplexity"]
    figures = figures or ["perplexity"]
    canvas = Figure(figsize=(5.5 * len(figures) + 1, 0.34 * len(names) + 1.4), layout="constrained")
    canvas.suptitle(title, fontsize=11)
    axes = canvas.subplots(1, len(figures), sharey=True, squeeze=False)[0]
    for axis, figure in zip(axes, figures, strict=True):
        for place, row in enumerate(summary.values()):
            _dots(axis, place, row.get("backbone", {}).get(figure), PALE)
            _dots(axis, place, row["served"][figure], COLOUR)
        axis.set_title(NAMES[figure], fontsize=10)
        axis.grid(axis="x", color="#dddddd")
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        if figure == "recall":
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    canvas.savefig(path, dpi=130)


def _dots(axis: Any, place: int, figure: Mapping[str, Any] | None, colour: str) -> None:
    if figure is None:
        return
    values = figure["values"]
    axis.scatter(values, [place] * len(values), s=22, color=colour, alpha=0.75, zorder=3)
    axis.vlines(figure["mean"], place - 0.3, place + 0.3, color=colour, linewidth=2, zorder=2)
