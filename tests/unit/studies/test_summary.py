from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from koffkit.report.study import draw_study, equal_size_verdict, study_table
from koffkit.studies.summary import Found, csv_text, summary


def run(row: str, seed: int, kl: float, **more: Any) -> Found:
    figures = {"unpruned": {"perplexity": 2.0, "kl": 0.0}, "backbone": {"perplexity": 4.0, "kl": 0.9}}
    matched = {"matched": {"perplexity": 3.0, "kl": kl}} if row != "bare" else {}
    domains = {
        "north": {"tokens": 7, **figures, **matched, "swap": {"south": {"perplexity": 5.0, "kl": 1.5}}}
    }
    mean = figures | matched | {"swap": {"perplexity": 5.0, "kl": 1.5}} | more
    return Found(row, seed, 1000 + seed, 0.25, domains, mean)


RUNS = [run("koff", 0, 0.2), run("koff", 1, 0.4), run("bare", 0, 0.0)]


def test_means_and_deviations_over_seeds() -> None:
    found = summary(RUNS, {"koff": "the recipe"})
    assert list(found) == ["koff", "bare"]
    assert found["koff"]["meaning"] == "the recipe"
    assert found["koff"]["served"]["kl"] == {
        "mean": pytest.approx(0.3),
        "std": pytest.approx(0.1414, abs=1e-4),
        "values": [0.2, 0.4],
    }
    assert found["bare"]["served"]["kl"]["mean"] == 0.9  # without a memory, the backbone is what is loaded
    assert found["koff"]["wrong"]["kl"]["mean"] == 1.5
    assert found["koff"]["seeds"] == [0, 1]


def test_a_figure_that_is_infinite_in_one_run_is_left_out() -> None:
    runs = [run("koff", 0, 0.2), run("koff", 1, 0.4, matched={"perplexity": None, "kl": 0.4})]
    assert set(summary(runs, {})["koff"]["served"]) == {"kl"}


def test_the_csv_has_a_line_for_every_condition_of_every_domain() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(RUNS))))
    found = {(row["row"], row["seed"], row["domain"], row["condition"]): row for row in rows}
    assert len(found) == len(rows) == 2 * 8 + 6
    assert found["koff", "1", "north", "matched"]["kl"] == "0.4"
    assert found["koff", "1", "north", "matched"]["tokens"] == "7"
    assert found["koff", "0", "north", "swap.south"]["perplexity"] == "5.0"
    assert found["koff", "0", "mean", "wrong"]["kl"] == "1.5"
    assert found["bare", "0", "mean", "backbone"]["recall"] == ""


def test_table_and_picture(tmp_path: Path) -> None:
    found = summary(RUNS, {})
    table = study_table(found, "a study")
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["unpruned", "koff", "bare"]
    assert cells[3] == ["0.0000 ± 0.0000", "0.3000 ± 0.1414", "0.9000"]
    draw_study(found, tmp_path / "a.png", "a study")
    assert (tmp_path / "a.png").stat().st_size > 1000


def row(name: str, seed: int, *kls: float, memory: bool = True, sparsity: float = 0.25) -> Found:
    """A run with one KL for each domain; its perplexities are ten times as much."""
    condition = "matched" if memory else "backbone"
    nothing = {"backbone": {"perplexity": 50.0, "kl": 5.0}}
    domains = {
        f"d{place}": nothing | {condition: {"perplexity": 10 * kl, "kl": kl}} for place, kl in enumerate(kls)
    }
    return Found(name, seed, 1005 if memory else 1000, sparsity, domains, domains["d0"])


LESS = [row("prune_less", 0, 0.2, 0.4, memory=False), row("prune_less", 1, 0.4, 0.4, memory=False)]


def test_rows_with_memories_are_held_against_the_row_of_their_size() -> None:
    koff = [row("koff", 0, 0.1, 0.3), row("koff", 1, 0.3, 0.6)]
    found = summary([*koff, *LESS], {})
    assert "against" not in found["prune_less"]
    assert found["koff"]["against"] == {
        "row": "prune_less",
        "seeds": 2,
        "domains": 2,
        "kl": {"lower": 1, "worse": False, "difference": pytest.approx(-0.025)},  # .2, .45 against .3, .4
        "perplexity": {"lower": 1, "worse": False, "ratio": pytest.approx(0.75**0.5)},
    }
    assert equal_size_verdict(found) == {
        "lines": [
            (
                "koff against prune_less (1,000 parameters loaded, here 1,005): lower KL in 1 of 2 domains "
                "(mean difference -0.0250), lower perplexity in 1 (mean difference -13.4%); mean of 2 seeds."
            ),
        ],
        "warnings": [],
    }


def test_a_row_that_loses_to_the_row_of_its_size_is_warned_of() -> None:
    lost = [row("koff", 0, 0.1, 0.6), row("unpruned_lora", 0, 1.0, 1.0, sparsity=0.0)]
    said = equal_size_verdict(summary([*lost, *LESS], {}))
    assert said["warnings"] == [
        (
            "koff loses to prune_less (1,000 parameters loaded, here 1,005): lower KL in 1 of 2 domains "
            "(mean difference +0.0500), lower perplexity in 1 (mean difference -13.4%); 1 seed."
        ),
    ]
    (line,) = said["lines"]
    assert line.startswith(
        "unpruned_lora against prune_less (1,000 parameters loaded, here 1,005): lower KL in 0 of 2 domains"
    )


def test_seeds_that_only_one_row_has_are_not_compared() -> None:
    assert "against" not in summary([row("koff", 7, 0.1, 0.3), *LESS], {})["koff"]
    assert "against" not in summary([row("koff", 0, 0.1, 0.3)], {})["koff"]
