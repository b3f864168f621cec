"""Results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from .swap import swap_matrix

CONDITIONS = ("unpruned", "backbone", "matched")


def results_table(results: Mapping[str, Any]) -> Table:
    """One row a domain: recall (for facts) and perplexity of every condition."""
    domains = results["domains"]
    first = next(iter(domains.values()))
    conditions = [name for name in CONDITIONS if name in first]
    figures = [name for name in ("recall", "perplexity") if name in first["unpruned"]]
    table = Table(title="domain by domain")
    table.add_column("domain")
    for figure in figures:
        for condition in conditions:
            table.add_column(f"{figure}\n{condition}", justify="right")
    for domain, found in domains.items():
        table.add_row(domain, *(format_figure(figure, found[condition][figure]) for figure in figures for condition in conditions))
    return table


def swap_table(results: Mapping[str, Any], figure: str) -> Table:
    """The swap matrix: one row a domain, one column a memory; the matched one in bold."""
    table = Table(title=f"swap matrix: {figure}, every memory on every domain")
    table.add_column("domain \\ memory")
    for memory in results["domains"]:
        table.add_column(memory, justify="right")
    for i, (domain, row) in enumerate(zip(results["domains"], swap_matrix(results, figure), strict=True)):
        table.add_row(domain, *(Text(format_figure(figure, v), style="bold" if i == j else "dim") for j, v in enumerate(row)))
    return table


def format_figure(figure: str, value: float) -> str:
    """A figure for people."""
    return f"{value:.1%}" if figure == "recall" else f"{value:.2f}"
