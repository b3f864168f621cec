"""What a study found: figures of every run, and their means over seeds."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..checkpoint.spec import ModelSpec
from ..planning.plan import make_plan, memory_parameters
from ..report.against import against, served
from ..run.state import RunState
from .study import Entry

FIGURES = ("perplexity", "kl", "recall")
COLUMNS = ("row", "seed", "domain", "condition", "tokens", *FIGURES)
EQUAL_SIZE = "prune_less"
"""The row that rows with memories are held against: no memory, and as many parameters loaded."""
Loaded = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """The figures of one run.

    Attributes:
        row, seed: which run.
        parameters: what must be loaded to answer: the backbone and one memory.
        sparsity: share of the base's parameters that is gone.
        domains, mean: as stage `evaluate` has them.
    """

    row: str
    seed: int
    parameters: int
    sparsity: float
    domains: Mapping[str, Any]
    mean: Mapping[str, Any]


def found(entry: Entry, state: RunState) -> Found:
    """The figures of a finished run."""
    spec, recipe = ModelSpec(config=state.base.config), entry.loaded.recipe
    if entry.unpruned:
        removed, memory = 0, memory_parameters(recipe, spec, len(state.memory_layers), {})
    else:
        removed, memory = state.budget.removed_params, make_plan(recipe, spec).memory_params
    base = state.budget.base_params
    results = state.results
    return Found(
        entry.row, entry.seed, base - removed + memory, removed / base, results["domains"], results["mean"]
    )


def csv_text(runs: Iterable[Found]) -> str:
    """One line for each run, domain (and their mean) and condition."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for run in runs:
        for domain, figures in [*run.domains.items(), ("mean", run.mean)]:
            for condition, values in _conditions(figures):
                known = {key: values[key] for key in FIGURES if values.get(key) is not None}
                writer.writerow(
                    {"row": run.row, "seed": run.seed, "domain": domain, "condition": condition}
                    | {"tokens": figures.get("tokens", "")}
                    | known
                )
    return text.getvalue()


def _conditions(figures: Loaded) -> Iterator[tuple[str, Loaded]]:
    for name, values in figures.items():
        if name == "swap" and "kl" not in values:
            yield from ((f"swap.{other}", part) for other, part in values.items())
        elif isinstance(values, Mapping) and values:
            yield ("wrong" if name == "swap" else name), values


def summary(runs: Iterable[Found], meanings: Mapping[str, str]) -> dict[str, Any]:
    """Means and standard deviations over seeds, by row, in the order of the runs.

    Args:
        runs: what was found.
        meanings: a few words for every row.

    Returns:
        `{row: {"meaning", "seeds", "parameters", "sparsity", condition: {figure: {"mean", "std",
        "values"}}}}` with the conditions `unpruned`, `backbone`, `served` (what a user would load) and
        `wrong` (the mean of the other memories). Rows with memories have `against` beside a row `prune_less`:
        `row`, `seeds` (how many both have, whose means are compared), and what `report.against` says.
    """
    by_row: dict[str, list[Found]] = {}
    for run in runs:
        by_row.setdefault(run.row, []).append(run)
    return {
        row: {
            "meaning": meanings.get(row, ""),
            "seeds": [run.seed for run in group],
            "parameters": round(statistics.fmean(run.parameters for run in group)),
            "sparsity": statistics.fmean(run.sparsity for run in group),
            **_averages(group),
            **_against(group, by_row.get(EQUAL_SIZE, [])),
        }
        for row, group in by_row.items()
    }


def _against(group: list[Found], baseline: list[Found]) -> dict[str, Any]:
    """A row with memories, and the row of its size, by the means over the seeds that both have."""
    seeds = {run.seed for run in group} & {run.seed for run in baseline}
    if not seeds or not all("matched" in figures for run in group for figures in run.domains.values()):
        return {}
    ours, theirs = (_means([run for run in side if run.seed in seeds]) for side in (group, baseline))
    return {"against": {"row": EQUAL_SIZE, "seeds": len(seeds), **against(ours, theirs)}}


def _means(runs: list[Found]) -> dict[str, dict[str, float | None]]:
    """Figures of what is served, by domain, means over runs; None: beyond the range of a float."""
    means = {}
    for domain in runs[0].domains:
        parts = [served(run.domains[domain]) for run in runs]
        known = {name: [part[name] for part in parts] for name in FIGURES if all(name in p for p in parts)}
        means[domain] = {
            name: None if None in values else statistics.fmean(values) for name, values in known.items()
        }
    return means


def _averages(group: list[Found]) -> dict[str, Any]:
    conditions: dict[str, list[Any]] = {
        "unpruned": [run.mean.get("unpruned") for run in group],
        "backbone": [run.mean.get("backbone") for run in group],
        "served": [served(run.mean) for run in group],
        "wrong": [run.mean.get("swap") for run in group],
    }
    averages = {name: _average([part for part in parts if part]) for name, parts in conditions.items()}
    return {name: figures for name, figures in averages.items() if figures}


def _average(parts: list[Loaded]) -> dict[str, Any]:
    """Of the figures that all of these conditions have."""
    known = [figure for figure in FIGURES if all(part.get(figure) is not None for part in parts)]
    return {figure: _spread([part[figure] for part in parts]) for figure in known if parts}


def _spread(values: list[float]) -> dict[str, Any]:
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "values": values,
    }
