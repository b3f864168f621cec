"""How far a run is that goes on, or was interrupted: from its state and the end of its metrics."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from ..storage.lock import writer_in
from .folder import RunFolder
from .state import RunState

TAIL = 1 << 16
"""Bytes of the metrics that are read, from their end: about a hundred steps."""
RECENT = 50
"""Steps that the KL and the speed are taken from."""
FIGURES = ("sparsity", "expected_sparsity", "tokens_per_second")


def live_state(folder: RunFolder, state: RunState) -> dict[str, Any]:
    """Who works on a run, where it is, and its last figures: what `koffkit inspect --json` has as `live`.

    Args:
        folder: the run.
        state: its `run.json`.
    """
    live: dict[str, Any] = {"writer": writer_in(folder.path), "stage": _stage(state)}
    rows = _recent(folder.metrics_file)
    if not rows:
        return live
    last = rows[-1]
    rows = [row for row in rows if row["stage"] == last["stage"]][-RECENT:]
    steps = training_steps(state.recipe)
    live |= {"step": last["step"], "steps": steps.get(last["stage"]), "stage_of_step": last["stage"]}
    kls = [row["kl"] for row in rows if isinstance(row.get("kl"), float)]
    live["kl"] = sum(kls) / len(kls) if kls else None
    live |= {key: last[key] for key in FIGURES if key in last}
    heldout = [row["heldout_kl"] for row in rows if "heldout_kl" in row]
    if heldout:
        live["heldout_kl"] = heldout[-1]
    live["seconds_left"] = _seconds_left(rows, last, steps)
    live["seconds_since"] = max(0.0, round(time.time() - folder.metrics_file.stat().st_mtime, 1))
    return live


def last_step(folder: RunFolder, stage: str) -> dict[str, Any] | None:
    """The figures of the step that was written last, if it was one of this stage."""
    rows = _recent(folder.metrics_file)
    return rows[-1] if rows and rows[-1]["stage"] == stage else None


def training_steps(recipe: Mapping[str, Any]) -> dict[str, int]:
    """Training steps of every stage that has some, in their order."""
    steps = {}
    for stage in recipe.get("stages", []):
        for name, options in stage.items():
            if isinstance(options, Mapping) and options.get("max_steps"):
                steps[str(name)] = int(options["max_steps"])
    return steps


def _stage(state: RunState) -> str | None:
    """The stage that is running, or the next one."""
    for wanted in ("running", "pending"):
        for stage in state.stages:
            if stage.state == wanted:
                return stage.name
    return None


def _recent(path: Path) -> Sequence[dict[str, Any]]:
    """The last rows of the metrics; the first and the last line that were read may be cut, and are left out
    where they are."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        lines = file.read(TAIL).split(b"\n")
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("stage"), str) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _seconds_left(
    rows: Sequence[Mapping[str, Any]], last: Mapping[str, Any], steps: Mapping[str, int]
) -> float | None:
    if last["stage"] not in steps:
        return None
    names = list(steps)
    later = sum(steps[name] for name in names[names.index(last["stage"]) + 1 :])
    each = _seconds_a_step(rows)
    return None if each is None else round(each * (steps[last["stage"]] - last["step"] + later), 1)


def _seconds_a_step(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The usual time from step to step; a pause between two commands does not count."""
    times = [float(row["wall_time"]) for row in rows if isinstance(row.get("wall_time"), int | float)]
    if len(times) > 1:
        return median(later - earlier for earlier, later in pairwise(times))
    speeds = [
        float(row["tokens"] / row["tokens_per_second"])
        for row in rows
        if row.get("tokens") and row.get("tokens_per_second")
    ]
    return median(speeds) if speeds else None
