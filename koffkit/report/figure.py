"""The results of a run as a picture: what pruning costs, what the matched memory restores, and what other
memories do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .swap import swap_matrix

COLOURS = {
    "unpruned": "#4d4d4d",
    "pruning only": "#d98b5f",
    "backbone alone": "#b9c6d8",
    "wrong memory": "#8fa8c8",
    "KOFF": "#1f5fa8",
}
NAMES = {"recall": "fact recall", "perplexity": "held-out perplexity"}
HIGHER_IS_BETTER = {"recall"}


def draw_comparison(
    path: Path,
    title: str,
    bars: Mapping[str, Sequence[float | None]],
    results: Mapping[str, Any],
    figure: str,
) -> None:
    """Write a PNG with bars per domain on the left and the swap matrix on the right.

    Args:
        bars: name of a condition -> `figure` of every domain, in the order of the results.
        results: of the run with memories, from stage `evaluate`.
        figure: `recall` or `perplexity`.

    Raises:
        UsageError: matplotlib, the extra `plot`, is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("drawing needs the extra: pip install 'koffkit[plot]'.") from None
    canvas = Figure(figsize=(11, 4.4), layout="constrained")
    canvas.suptitle(title, fontsize=13, fontweight="bold")
    left, right = canvas.subplots(1, 2, width_ratios=[1.45, 1])
    _bars(left, bars, list(results["domains"]), figure)
    _matrix(right, canvas, results, figure)
    canvas.savefig(path, dpi=150)


def _bars(axes: Any, bars: Mapping[str, Sequence[float | None]], domains: list[str], figure: str) -> None:
    width = 0.84 / len(bars)
    for place, (name, given) in enumerate(bars.items()):
        values = [math.nan if value is None else value for value in given]  # no bar
        positions = [index + (place - (len(bars) - 1) / 2) * width for index in range(len(domains))]
        axes.bar(positions, values, width * 0.94, label=name, color=COLOURS.get(name))
    axes.set_xticks(range(len(domains)), domains)
    axes.set_title(f"{NAMES[figure]} by domain", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    if figure == "recall":
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=len(bars), frameon=False, fontsize=9)


def _drawable(rows: list[list[float]]) -> list[list[float]]:
    """The matrix with NaN (an empty cell) for infinities, which would take up the whole colour scale."""
    return [[value if math.isfinite(value) else math.nan for value in row] for row in rows]


def _matrix(axes: Any, canvas: Any, results: Mapping[str, Any], figure: str) -> None:
    domains, rows = list(results["domains"]), swap_matrix(results, figure)
    image = axes.imshow(
        _drawable(rows), cmap="Blues" if figure in HIGHER_IS_BETTER else "Blues_r", aspect="auto"
    )
    middle = (image.norm.vmin + image.norm.vmax) / 2
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            dark = (value > middle) == (figure in HIGHER_IS_BETTER)
            weight = "bold" if i == j else "normal"
            shown = f"{value:.0%}" if figure == "recall" else f"{value:.2f}"
            axes.text(
                j,
                i,
                shown,
                ha="center",
                va="center",
                color="white" if dark else "#222222",
                fontsize=9,
                fontweight=weight,
            )
    axes.set_xticks(range(len(domains)), domains)
    axes.set_yticks(range(len(domains)), domains)
    axes.set_xlabel("memory attached")
    axes.set_ylabel("text of domain")
    axes.set_title(f"{NAMES[figure]}, every memory on every domain", fontsize=11)
    canvas.colorbar(image, ax=axes, shrink=0.9)
