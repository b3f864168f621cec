from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from koffkit.report.figure import draw_comparison
from koffkit.report.swap import matched_best, swap_matrix
from koffkit.report.table import results_table, router_summary, router_table, swap_table


def figures(recall: float, perplexity: float) -> dict[str, float]:
    return {"recall": recall, "perplexity": perplexity}


RESULTS: dict[str, Any] = {
    "domains": {
        "de": {
            "unpruned": figures(1.0, 2.0),
            "backbone": figures(0.5, 3.0),
            "matched": figures(0.9, 2.1),
            "swap": {"fr": figures(0.4, 3.5)},
        },
        "fr": {
            "unpruned": figures(1.0, 2.0),
            "backbone": figures(0.6, 3.1),
            "matched": figures(0.8, 2.2),
            "swap": {"de": figures(0.8, 2.0)},
        },
    },
    "mean": {"unpruned": figures(1.0, 2.0), "backbone": figures(0.55, 3.05), "matched": figures(0.85, 2.15)},
}
ROUTER = {
    "accuracy": 0.975, "documents": 40, "calibration_error": 0.0123, "milliseconds": 0.05,
    "confusion": {"de": {"de": 19, "fr": 1}, "fr": {"fr": 20}},
}  # fmt: skip


def text(table: Any) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_rows_are_domains_and_columns_are_memories() -> None:
    assert swap_matrix(RESULTS, "recall") == [[0.9, 0.4], [0.8, 0.8]]


def test_best_means_strictly_best_in_the_right_direction() -> None:
    assert matched_best(RESULTS, "recall") == 1
    assert matched_best(RESULTS, "perplexity") == 1


def test_tables_hold_the_figures() -> None:
    shown = text(results_table(RESULTS))
    assert "90.0%" in shown
    assert "3.10" in shown
    assert "recall" in shown
    shown = text(swap_table(RESULTS, "perplexity"))
    assert "2.10" in shown and "3.50" in shown


def test_the_mean_stands_below_several_domains_only() -> None:
    mean = next(line for line in text(results_table(RESULTS)).splitlines() if "mean" in line)
    assert "85.0%" in mean and "2.15" in mean
    alone = {"domains": {"de": RESULTS["domains"]["de"]}, "mean": {}}
    assert "mean" not in text(results_table(alone))


def test_a_router_is_shown_with_its_confusion_calibration_and_latency() -> None:
    shown = text(router_table(ROUTER))
    assert all(
        part in router_summary(ROUTER)
        for part in ("97.5% of 40", "calibration error 0.012", "0.05 ms per text")
    )
    assert next(line for line in shown.splitlines() if " de " in line and "19" in line).replace(
        "│", " "
    ).split() == ["de", "19", "1"]
    unsure = {**ROUTER, "confusion": {"de": {"de": 18, "none": 2}}}  # a choice that is no label of the table
    assert "none" in text(router_table(unsure))


@pytest.mark.parametrize("figure", ["recall", "perplexity"])
def test_the_picture_is_drawn(tmp_path: Path, figure: str) -> None:
    from matplotlib.image import imread

    bars = {"unpruned": [1.0, 1.0], "KOFF": [0.9, 0.8]}
    draw_comparison(tmp_path / "p.png", "title", bars, RESULTS, figure)
    picture = imread(tmp_path / "p.png")
    assert picture.shape[0] > 400
    assert picture.shape[1] > 1000
    assert picture[..., :3].std() > 0.05


@pytest.mark.parametrize("width", [40, 60])
def test_no_name_is_cut_on_a_narrow_terminal(width: int) -> None:
    long = "a-domain-with-a-very-long-name"
    results = {"domains": {long: RESULTS["domains"]["de"] | {"swap": {}}}, "mean": RESULTS["mean"]}
    router = ROUTER | {"confusion": {long: {long: 3}}}
    for table in (results_table(results), swap_table(results, "recall"), router_table(router)):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(table)
        shown = console.export_text()
        assert "…" not in shown
        letters = [cell for line in shown.splitlines() for cell in line.replace("│", "┃").split("┃")]
        assert long in "".join(cell.strip() for cell in letters if set(cell.strip()) <= set(long))
