"""Results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

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
        table.add_row(domain, *(_cell(figure, found[condition][figure]) for figure in figures for condition in conditions))
    return table


def _cell(figure: str, value: float) -> str:
    return f"{value:.1%}" if figure == "recall" else f"{value:.2f}"
