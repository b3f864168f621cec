"""The swap matrix: every memory on every domain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def swap_matrix(results: Mapping[str, Any], figure: str) -> list[list[float]]:
    """`figure` of domain i (row) with memory j (column), both in the order of the domains; infinite where it
    is beyond the range of a float.

    Args:
        results: of stage `evaluate`.
        figure: `kl`, `perplexity` or `recall`.
    """
    domains = results["domains"]

    def value(figures: Mapping[str, Any]) -> float:
        return math.inf if figures[figure] is None else float(figures[figure])

    return [
        [value(result["matched"] if memory == domain else result["swap"][memory]) for memory in domains]
        for domain, result in domains.items()
    ]


def matched_best(results: Mapping[str, Any], figure: str = "perplexity") -> int:
    """The number of rows in which the matched memory is strictly the best."""
    sign = -1.0 if figure == "recall" else 1.0
    rows = [[sign * value for value in row] for row in swap_matrix(results, figure)]
    return sum(all(row[i] < value for j, value in enumerate(row) if j != i) for i, row in enumerate(rows))
