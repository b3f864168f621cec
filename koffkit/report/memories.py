"""The memories of an export as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from .table import format_figure

COLUMNS = (
    *("params", "bytes", "layers", "rank", "KV", "neurons"),
    *("dtype", "auto", "origin", "KL", "ppl", "recall"),
)


def memories_table(memories: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row per memory, narrow enough for a terminal of 80 columns."""
    table = Table(
        title="memories (auto: the router knows it; *: compact; figures on held-out text)",
        box=None,
        padding=(0, 1, 0, 0),
    )
    neurons = any(row["neurons"] for row in memories.values())  # the column is shown where it says something
    table.add_column("memory", overflow="fold")
    for name in COLUMNS:
        if neurons or name != "neurons":
            table.add_column(name, justify="right", overflow="fold")
    for name, row in memories.items():
        origin = row["origin"] + ("*" if row["compacted"] else "")
        cells = [
            f"{row['parameters']:,}",
            f"{row['bytes']:,}",
            layer_range(row["layers"]),
            _or_none(row["rank"]),
            _or_none(row["kv_tokens"]),
            *([_or_none(row["neurons"])] if neurons else []),
        ]
        table.add_row(
            name, *cells, row["dtype"], "yes" if row["in_router"] else "no", origin, *_figures(row["figures"])
        )
    return table


def layer_range(layers: list[int]) -> str:
    """Consecutive layers as one: `0-5`, with a gap `0,2-5`."""
    ends = [(index, index - 1 not in layers, index + 1 not in layers) for index in layers]
    firsts = [index for index, first, _ in ends if first]
    lasts = [index for index, _, last in ends if last]
    return ",".join(
        str(first) if first == last else f"{first}-{last}" for first, last in zip(firsts, lasts, strict=True)
    )


def _or_none(value: int | None) -> str:
    return "-" if value is None else str(value)


def _figures(figures: Mapping[str, Any]) -> list[str]:
    matched = figures.get("matched", {})
    kl = "-" if matched.get("kl") is None else f"{matched['kl']:.3f}"
    return [
        kl,
        *(
            format_figure(name, matched[name]) if name in matched else "-"
            for name in ("perplexity", "recall")
        ),
    ]
