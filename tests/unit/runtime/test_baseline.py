from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from koffkit.errors import UsageError
from koffkit.report.verdict import verdict_of
from koffkit.run.folder import RunFolder
from koffkit.run.state import RunState
from koffkit.runtime.baseline import plan_of_run, with_baseline

from ...conftest import Shipped


def other_run(
    shipped: Shipped, root: Path, change: Callable[[RunState], RunState] | None = None
) -> RunFolder:
    """A run like the shipped one that was changed afterwards."""
    run = RunFolder(Path(shutil.copytree(shipped.run, root / "less")))
    if change is not None:
        run.write(change(run.read()))
    return run


def without_memories(state: RunState) -> RunState:
    """Figures of the backbone alone, all halved."""
    results = {"domains": {}, "mean": {}}
    for name, figures in state.results["domains"].items():
        half = {key: value / 2 for key, value in figures["backbone"].items()}
        results["domains"][name] = {**figures, "matched": None, "swap": {}, "backbone": half}
    results["mean"] = {"backbone": {"kl": 0.123, "perplexity": 4.5}}
    memory = state.recipe["memory"] | {"lora": None, "kv": None}
    stages = [stage for stage in state.recipe["stages"] if "evaluate" in stage or "learn_masks" in stage]
    return state.evolve(results=results, recipe=state.recipe | {"memory": memory, "stages": stages})


def test_figures_of_another_run_stand_beside_those_of_this_one(shipped: Shipped, tmp_path: Path) -> None:
    run, other = RunFolder(shipped.run), other_run(shipped, tmp_path, without_memories)
    found, own = with_baseline(run, other), run.read().results
    for name, figures in found["domains"].items():
        assert figures.pop("baseline less")["kl"] == own["domains"][name]["backbone"]["kl"] / 2
    assert found["mean"].pop("baseline less") == {"kl": 0.123, "perplexity": 4.5}
    plan, budget = plan_of_run(run.read()), run.read().budget
    backbone = budget.base_params - budget.removed_params
    assert plan is not None and plan.memory_params > 0
    assert found.pop("baseline") == {
        "name": "less",
        "parameters": backbone,
        "own_parameters": backbone + plan.memory_params,
    }
    assert found == own


def test_a_run_whose_backbone_was_there_has_no_count(shipped: Shipped, tmp_path: Path) -> None:
    other = other_run(shipped, tmp_path, lambda state: state.evolve(backbone="0" * 64))
    results = with_baseline(RunFolder(shipped.run), other)
    assert results["baseline"]["parameters"] is None
    assert any(line.startswith("Against less: lower KL in 0 of 2") for line in verdict_of(results).lines)


def domains(state: RunState, **changed: Any) -> RunState:
    known = state.results["domains"]
    return state.evolve(results={**state.results, "domains": {**known, **changed}})


def other_heldout(state: RunState) -> RunState:
    name = "data/south.heldout.bin"
    assert state.files is not None
    return state.evolve(files=state.files | {name: state.files["data/north.heldout.bin"]})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.evolve(state="running"), "has no figures of stage evaluate, or is not finished"),
        (lambda s: s.evolve(results={}), "has no figures of stage evaluate"),
        (
            lambda s: s.evolve(base=s.base.model_copy(update={"fingerprint": "0" * 64})),
            "its base is another one",
        ),
        (lambda s: domains(s, east={}), "its domains are north, south, east, not north, south"),
        (
            lambda s: s.evolve(recipe=s.recipe | {"sequence_length": 8}),
            "sequence_length is 8 there and 16 here",
        ),
        (other_heldout, "its held-out text of south is not the same"),
        (
            lambda s: domains(s, north=s.results["domains"]["north"] | {"tokens": 1}),
            "1 held-out tokens of north",
        ),
    ],
)
def test_what_was_measured_on_something_else_is_refused(
    shipped: Shipped, tmp_path: Path, change: Callable[[RunState], RunState], reason: str
) -> None:
    other = other_run(shipped, tmp_path, change)
    with pytest.raises(UsageError) as refused:
        with_baseline(RunFolder(shipped.run), other)
    assert f"--baseline {other.path}: " in str(refused.value)
    assert reason in str(refused.value)
    assert "Name a finished run on the same base, domains and held-out text" in str(refused.value)


def test_a_run_is_no_baseline_of_itself(shipped: Shipped) -> None:
    with pytest.raises(UsageError, match="this is the run itself"):
        with_baseline(RunFolder(shipped.run), RunFolder(shipped.run))
