"""Tables of the page: the same figures as in the terminal, as cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..table import format_figure

FIGURES = {"kl": "KL", "perplexity": "perplexity", "recall": "recall"}
NAMES = {
    "backbone": "backbone alone",
    "matched": "matched memory",
    "wrong": "wrong memory (mean)",
    "text": "what the document says",
}
ORDER = ("unpruned", "backbone", "wrong", "matched")
Figures = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell.

    Args:
        text: what it shows. title: what hovering says.
        shade: 0 (worst of its row) to 1 (best); None: not shaded.
        strong: bold.
    """

    text: str
    title: str = ""
    shade: float | None = None
    strong: bool = False


def condition_name(name: str) -> str:
    """A condition as people call it."""
    return NAMES.get(name, name.replace("_", " "))


def conditions(of_domain: Figures) -> dict[str, Figures]:
    """The figures of every condition of one domain: those that koffkit knows in a fixed order, wrong memories
    as their mean, and any baseline that the run holds."""
    found = {
        name: figures
        for name, figures in of_domain.items()
        if isinstance(figures, Mapping) and "perplexity" in figures
    }
    swap = [figures for figures in of_domain.get("swap", {}).values() if figures]
    if swap:
        found["wrong"] = {key: _mean([row.get(key) for row in swap]) for key in swap[0]}
    known = [name for name in ORDER if name in found]
    return {name: found[name] for name in (*known, *(name for name in found if name not in ORDER))}


def _mean(values: Sequence[Any]) -> float | None:
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return fmean(numbers) if len(numbers) == len(values) else None


def domain_columns(results: Figures) -> tuple[list[str], list[str]]:
    """The conditions and the figures that the run holds for its domains."""
    rows = [conditions(of_domain) for of_domain in results.get("domains", {}).values()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    held = {key for row in rows for figures in row.values() for key in figures}
    return names, [key for key in FIGURES if key in held]


def domain_rows(results: Figures, figure: str) -> list[tuple[str, list[Cell]]]:
    """One row per domain with `figure` under every condition; the best pruned one is bold."""
    names, _ = domain_columns(results)
    return [
        (domain, _row(conditions(of_domain), names, figure))
        for domain, of_domain in results.get("domains", {}).items()
    ]


def _row(found: Mapping[str, Figures], names: Sequence[str], figure: str) -> list[Cell]:
    values = {name: found[name].get(figure) for name in names if name in found and figure in found[name]}
    numbers = {name: value for name, value in values.items() if value is not None and name != "unpruned"}
    best = None
    if numbers:
        best = (max if figure == "recall" else min)(numbers.values())
    return [
        Cell(text=shown(figure, values[name]), strong=name in numbers and numbers[name] == best)
        if name in values
        else Cell(text="-")
        for name in names
    ]


def shown(figure: str, value: float | None) -> str:
    """A figure as text."""
    if figure == "kl":
        return "inf" if value is None else f"{value:.4f}"
    return format_figure(figure, value)


def swap_rows(results: Figures, figure: str) -> list[tuple[str, list[Cell]]]:
    """The swap matrix: a row per domain with every memory, then the bare backbone; shaded within its row, as
    in the paper (figure 3)."""
    domains = results["domains"]
    rows = []
    for domain, of_domain in domains.items():
        matrix = {
            name: of_domain.get("matched") if name == domain else of_domain.get("swap", {}).get(name)
            for name in domains
        }
        matrix["backbone alone"] = of_domain.get("backbone")
        rows.append((domain, _shaded(domain, matrix, figure)))
    return rows


def _shaded(domain: str, matrix: Mapping[str, Figures | None], figure: str) -> list[Cell]:
    values = {name: figures.get(figure) for name, figures in matrix.items() if figures}
    finite = [float(value) for value in values.values() if value is not None and math.isfinite(value)]
    finite = finite or [math.inf]  # nothing to shade by
    best, worst = (max(finite), min(finite)) if figure == "recall" else (min(finite), max(finite))
    cells = []
    for name in matrix:
        if name not in values:
            cells.append(Cell(text="-"))
            continue
        value = values[name]
        share = 0.0 if value is None else 1.0 if best == worst else (value - worst) / (best - worst)
        title = f"text of {domain}, {name if name == 'backbone alone' else f'memory {name}'}"
        cells.append(Cell(text=shown(figure, value), title=title, shade=share, strong=name == domain))
    return cells


def has_swap(results: Figures) -> bool:
    """Whether other memories were tried on the domains."""
    return any(of_domain.get("swap") for of_domain in results.get("domains", {}).values())
