from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from koffkit.exporters import export

from koffkit.recipe.load import load_recipe
from koffkit.run.folder import RunFolder
from koffkit.runtime.report_of_export import facts_of_export
from koffkit.runtime.report_of_run import facts_of_run, steps_to_target
from koffkit.stages.engine import run_recipe

from ...common import recipe_dict, write_recipe, write_record
from ...conftest import Shipped


def rows(*expected: float) -> list[dict[str, Any]]:
    return [
        {"step": step, "expected_sparsity": value, "sparsity": 0.2} for step, value in enumerate(expected, 1)
    ]


@pytest.mark.parametrize(
    ("expected", "step"),
    [((0.1, 0.195, 0.2), 2), ((0.1, 0.2, 0.3, 0.2), 4), ((0.1, 0.2, 0.3), 0), ((), None)],
)
def test_gates_are_at_their_target_once_they_stay_there(
    expected: tuple[float, ...], step: int | None
) -> None:
    assert steps_to_target(rows(*expected)) == step


def test_facts_of_a_finished_run(shipped: Shipped) -> None:
    facts = facts_of_run(RunFolder(shipped.run))
    state = RunFolder(shipped.run).read()
    assert facts.removed_parameters == state.budget.removed_params
    assert {cut.place for cut in facts.projections} == {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    kept = {cut.kept for cut in facts.structures}
    assert kept == {state.budget.keep["mlp_neuron"]}
    gone = sum(cut.total - cut.kept for cut in facts.projections)
    assert gone <= facts.removed_parameters
    assert gone / facts.removed_parameters > 0.9  # the rest are biases
    assert [row["step"] for row in facts.steps] == [1, 2, 4, 5, 7, 8, 9, 10]  # 3 and 6 read retention text
    assert facts.sizes is not None
    assert list(facts.sizes.memories) == ["north", "south"]
    assert facts.notes == []


def test_planned_and_actual(shipped: Shipped) -> None:
    plan = {row.what: row for row in facts_of_run(RunFolder(shipped.run)).plan}
    assert plan["learn_masks: steps"].planned == plan["learn_masks: steps"].actual == "6"
    assert plan["route: time"].actual != "-"  # measured, though no step is written
    assert plan["parameters removed"].planned.startswith("at least")


def test_an_unfinished_run_of_another_version_still_has_a_page(shipped: Shipped, tmp_path: Path) -> None:
    shutil.copytree(shipped.run, tmp_path / "run")
    tree = json.loads((shipped.run / "run.json").read_text())
    tree |= {"state": "running", "results": {}, "recipe": tree["recipe"] | {"unheard_of": 1}}
    write_record(tmp_path / "run" / "run.json", tree)
    (tmp_path / "run" / "metrics.jsonl").write_text(
        '{"stage": "learn_masks", "step": 1, "kl": 0.5}\n{"stage": "le'
    )
    facts = facts_of_run(RunFolder(tmp_path / "run"))
    assert [row["kl"] for row in facts.steps] == [0.5]
    assert facts.plan == []
    assert len(facts.notes) == 2


def test_facts_of_an_export(shipped: Shipped) -> None:
    facts = facts_of_export(shipped.export)
    run = facts_of_run(RunFolder(shipped.run))
    assert facts.structures == run.structures
    assert facts.removed_parameters == run.removed_parameters
    assert facts.results == run.results
    assert facts.sizes is not None
    assert not facts.sizes.estimated
    assert set(facts.sizes.memories) == {"north", "south"}


def test_facts_of_an_export_in_ragged_layers(llama: Path, tmp_path: Path) -> None:
    """Its backbone is of koffkit's own class, which is no family of models."""
    tree = recipe_dict(llama, tmp_path / "data")
    tree["mask"] = {
        "structures": ["mlp_neuron"],
        "global_sparsity": 0.2,
        "layout": "ragged",
        "multiple_of": 1,
    }
    tree["stages"] = [{"select_masks": {"selector": "flap", "batches": 1}}, {"recover": {"max_steps": 1}}]
    run_recipe(load_recipe(write_recipe(tmp_path / "recipe.yaml", tree)), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    facts = facts_of_export(tmp_path / "out")
    assert len({cut.kept for cut in facts.structures}) > 1
    assert facts.structures == facts_of_run(RunFolder(tmp_path / "run")).structures
