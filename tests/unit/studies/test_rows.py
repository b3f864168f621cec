"""Every row of an ablation is a valid recipe, and is what its name says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from koffkit import plugins
from koffkit.checkpoint.spec import ModelSpec
from koffkit.errors import UsageError
from koffkit.planning.plan import budget_of, make_plan, memory_parameters
from koffkit.progress import Silent
from koffkit.recipe.load import LoadedRecipe, load_recipe
from koffkit.recipe.schema import Recipe
from koffkit.studies.equal_size import COMBINATIONS, SIZES
from koffkit.studies.rows import DEFAULT, ROWS, find_row
from koffkit.studies.study import Entry, ablation

from ...common import make_checkpoint, recipe_dict, write_recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base"))


def loaded_of(base: Path, root: Path, **changes: Any) -> LoadedRecipe:
    return load_recipe(write_recipe(root / "recipe.yaml", recipe_dict(base, root / "data", **changes)))


def entries(base: Path, root: Path, rows: list[str], **changes: Any) -> dict[str, Entry]:
    found = ablation(loaded_of(base, root, **changes), rows, [0], root / "runs", Silent())
    return {entry.row: entry for entry in found}


def recipe_of(base: Path, root: Path, row: str, **changes: Any) -> Recipe:
    return entries(base, root, [row], **changes)[row].loaded.recipe


def stages(recipe: Recipe) -> list[str]:
    return [stage.name for stage in recipe.stages]


class Told(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


def default_rows(base: Path, root: Path, **changes: Any) -> tuple[list[str], list[str]]:
    """The default rows of a recipe, and what was said of others."""
    told = Told()
    found = ablation(loaded_of(base, root, **changes), None, [0, 1], root / "runs", told)
    assert [entry.seed for entry in found] == [0, 1] * (len(found) // 2)
    return [entry.row for entry in found[::2]], told.texts


MASK = {"structures": ["mlp_neuron"], "global_sparsity": 0.2, "multiple_of": 4}
SMALL = {"layers": "all", "lora": {"rank": 2, "alpha": 2, "targets": ["up_proj"]}, "kv": {"tokens": 3}}
HEADS = {"structures": ["kv_group"], "global_sparsity": 0.1, "multiple_of": 1}
SELECTED = [{"select_masks": {}}, {"recover": {"max_steps": 2}}, {"evaluate": {}}]


def test_all_layers_where_the_recipe_has_some(base: Path, tmp_path: Path) -> None:
    few = SMALL | {"layers": {"upper": 1}}
    found = entries(base, tmp_path, ["koff", "all_layers"], memory=few)
    assert found["all_layers"].loaded.recipe.memory.layers == "all"
    assert found["koff"].loaded.recipe.memory.layers != "all"
    with pytest.raises(UsageError, match="row all_layers: the recipe has its memory in all layers already"):
        recipe_of(base, tmp_path, "all_layers", memory=SMALL)


def test_the_default_rows_are_all_baselines(base: Path, tmp_path: Path) -> None:
    assert default_rows(base, tmp_path, mask=MASK, memory=SMALL) == (list(DEFAULT), [])
    named = {"pruning_only", "prune_less", "restored_neurons", "prune_then_recover", "random_memory"}
    assert named | {"koff", "unpruned_lora"} <= set(DEFAULT)


def test_default_rows_that_make_no_sense_are_left_out_and_told(base: Path, tmp_path: Path) -> None:
    memory = SMALL | {"kv": None, "lora": {"rank": 3, "alpha": 3, "targets": ["up_proj"]}}
    rows, told = default_rows(base, tmp_path, mask=MASK, memory=memory, stages=SELECTED)
    gone = ["prune_then_recover", "random_memory", "one_shot_activation"]
    assert rows == [row for row in DEFAULT if row not in gone]
    assert told == [
        "row prune_then_recover is left out: the recipe has no stage learn_masks.",
        "row random_memory is left out: the recipe has no memory.kv, and an untrained LoRA does nothing.",
        "row one_shot_activation is left out: for this recipe it is the same as koff.",
    ]
    with pytest.raises(
        UsageError, match="row prune_then_recover: the recipe has no stage learn_masks; leave"
    ):
        entries(base, tmp_path, ["koff", "prune_then_recover"], mask=MASK, memory=memory, stages=SELECTED)


def test_a_default_row_whose_recipe_cannot_be_run_is_left_out(base: Path, tmp_path: Path) -> None:
    rows, told = default_rows(base, tmp_path, mask=HEADS, memory=SMALL)
    assert "restored_neurons" not in rows and "koff" in rows
    (said,) = [text for text in told if "restored_neurons" in text]
    assert "memory.neurons: the mask removes none" in said and "\n" not in said
    with pytest.raises(UsageError, match="a study needs the figures of stage evaluate"):
        default_rows(base, tmp_path, stages=[{"learn_masks": {"max_steps": 1}}])


@pytest.mark.parametrize(("tuned", "left_out"), [(False, True), (True, False)])
def test_untrained_neurons_are_not_run_twice(base: Path, tmp_path: Path, tuned: bool, left_out: bool) -> None:
    memory = {"layers": "all", "lora": None, "kv": None, "neurons": {"count": 2, "tuned": tuned}}
    stages = [{"select_masks": {"selector": "fisher", "for_memories": True}}, {"restore": {}}]
    stages += [{"recover": {"max_steps": 2}}] * tuned + [{"evaluate": {}}]
    rows, told = default_rows(base, tmp_path, mask=MASK, memory=memory, stages=stages, retention=None)
    assert ("restored_neurons" not in rows) is left_out
    same = "row restored_neurons is left out: for this recipe it is the same as koff."
    assert (same in told) is left_out
    assert (
        "row unpruned_lora is left out: no stage of the recipe trains, so a LoRA has no steps." in told
    ) is (not tuned)


def test_neurons_that_train_come_back_untrained(base: Path, tmp_path: Path) -> None:
    memory = {"layers": "all", "lora": None, "kv": None, "neurons": {"count": 2, "tuned": True}}
    stages = [
        {"learn_masks": {"max_steps": 2}},
        {"restore": {}},
        {"recover": {"max_steps": 2}},
        {"evaluate": {}},
    ]
    given = {"mask": MASK, "memory": memory, "stages": stages}
    neurons = recipe_of(base, tmp_path, "restored_neurons", **given).memory.neurons
    assert neurons is not None
    assert (neurons.count, neurons.tuned) == (2, False)
    with pytest.raises(UsageError, match="the recipe learns no memory together with the masks; leave"):
        recipe_of(base, tmp_path, "prune_then_recover", **given)


def test_rows_of_a_memory_s_size_need_a_memory(base: Path, tmp_path: Path) -> None:
    memory = {"layers": "all", "lora": None, "kv": None}
    for row in ("prune_less", "restored_neurons", "unpruned_lora"):
        with pytest.raises(UsageError, match=f"row {row}: the recipe has no memory; leave the row out"):
            recipe_of(base, tmp_path, row, memory=memory, mask=MASK, stages=SELECTED[::2])
    rows, _ = default_rows(base, tmp_path, memory=memory, mask=MASK, stages=SELECTED[::2])
    assert rows == ["koff"]


def test_one_shot_rows_look_at_the_text_that_the_recipe_looks_at(base: Path, tmp_path: Path) -> None:
    chosen = {"selector": "fisher", "batches": 3, "batch_size": 5, "text": "domains", "for_memories": True}
    stages = [{"select_masks": chosen}, {"restore": {}}, {"recover": {"max_steps": 2}}, {"evaluate": {}}]
    for row in ("one_shot_taylor", "one_shot_taylor_bare"):
        options = recipe_of(base, tmp_path, row, memory=NEURONS, stages=stages).stages[0].options
        assert (options.batches, options.batch_size, options.text) == (3, 5, "domains")
        assert (options.selector, options.for_memories) == ("taylor", False)


def test_all_rows_are_recipes_that_differ(base: Path, tmp_path: Path) -> None:
    same = ("neurons_only", "uniform", "cold_gates", "all_layers", *COMBINATIONS)
    rows = [name for name in ROWS if name not in same]
    found = entries(base, tmp_path, rows)
    texts = {entry.loaded.recipe.model_dump_json() for entry in found.values()}
    assert len(texts) == len(rows)
    assert {f"one_shot_{name}" for name in plugins.names(plugins.SELECTORS)} < set(ROWS)


def test_rows_without_memory(base: Path, tmp_path: Path) -> None:
    for row in ("pruning_only", "one_shot_taylor_bare", "prune_less"):
        recipe = recipe_of(base, tmp_path, row)
        memory = recipe.memory
        assert (memory.lora, memory.kv, memory.neurons) == (None, None, None)
        assert stages(recipe)[1:] == ["evaluate"]


def test_rows_with_a_part_of_the_memory(base: Path, tmp_path: Path) -> None:
    lora, kv = (recipe_of(base, tmp_path, row).memory for row in ("lora_only", "kv_only"))
    assert lora.kv is None and lora.lora is not None
    assert kv.lora is None and kv.kv is not None
    with pytest.raises(UsageError, match=r"row kv_only: the recipe has no memory\.kv"):
        recipe_of(base, tmp_path, "kv_only", memory={"lora": None, "kv": None})


NEURONS = {"layers": "all", "lora": None, "kv": {"tokens": 2}, "neurons": {"count": 3}}


def test_masks_count_on_neurons_only_where_they_come_back(base: Path, tmp_path: Path) -> None:
    chosen = {"select_masks": {"selector": "sensitivity", "for_memories": True}}
    kept = [chosen, {"restore": {}}, {"recover": {"max_steps": 2}}, {"evaluate": {}}]
    given = {"memory": NEURONS, "stages": kept, "retention": None}
    for row, counted in {"koff": True, "neurons_only": True, "kv_only": False, "prune_less": False}.items():
        recipe = recipe_of(base, tmp_path, row, **given)
        assert recipe.stages[0].options.for_memories is counted
        assert ("restore" in stages(recipe)) is counted is (recipe.memory.neurons is not None)


def test_one_shot_rows_recover_as_the_recipe_does(base: Path, tmp_path: Path) -> None:
    recipe = recipe_of(base, tmp_path, "one_shot_fisher")
    assert stages(recipe) == ["select_masks", "recover", "route", "evaluate"]
    assert recipe.stages[0].options.selector == "fisher"
    assert recipe.stages[1].options.max_steps == 4
    assert recipe_of(base, tmp_path, "one_shot_flap").mask.repair == "bias"
    assert recipe_of(base, tmp_path, "one_shot_depth").mask.layout == "ragged"


def test_flap_goes_without_biases_where_the_family_has_none(tmp_path: Path) -> None:
    qwen = make_checkpoint(tmp_path / "qwen", "qwen2")
    assert recipe_of(qwen, tmp_path, "one_shot_flap").mask.repair == "none"


def test_prune_less_loads_as_many_parameters_as_backbone_and_one_memory(base: Path, tmp_path: Path) -> None:
    memory = {"layers": "all", "lora": {"rank": 1, "alpha": 1, "targets": ["up_proj"]}, "kv": None}
    mask = {"structures": ["mlp_neuron"], "global_sparsity": 0.2, "multiple_of": 1}
    spec = ModelSpec.open(base)
    plan = make_plan(loaded_of(base, tmp_path, memory=memory, mask=mask).recipe, spec)
    less = recipe_of(base, tmp_path, "prune_less", memory=memory, mask=mask)
    loaded = budget_of(less, spec).base_params - budget_of(less, spec).removed_params
    wanted = plan.backbone_params + plan.memory_params
    assert wanted - budget_of(less, spec).step_params < loaded <= wanted
    big = {"layers": "all", "lora": {"rank": 64, "alpha": 1, "targets": ["up_proj"]}, "kv": None}
    with pytest.raises(UsageError, match=r"row prune_less: one memory \([\d,]+ parameters\) is as large"):
        recipe_of(base, tmp_path, "prune_less", memory=big, mask=mask)


def test_a_lora_on_the_unpruned_base_has_the_bytes_of_a_memory(base: Path, tmp_path: Path) -> None:
    spec = ModelSpec.open(base)
    memory = {
        "layers": {"upper": 2},
        "lora": {"rank": 8, "alpha": 8, "targets": ["up_proj"]},
        "kv": {"tokens": 9},
    }
    plan = make_plan(loaded_of(base, tmp_path, memory=memory).recipe, spec)
    entry = entries(base, tmp_path, ["unpruned_lora"], memory=memory)["unpruned_lora"]
    recipe = entry.loaded.recipe
    found = memory_parameters(recipe, spec, 2, {}) * 4
    assert entry.unpruned
    assert 0.85 * plan.memory_bytes < found <= plan.memory_bytes
    assert (recipe.memory.kv, recipe.distill.loss) == (None, "cross_entropy")
    assert stages(recipe) == ["recover", "evaluate"]
    assert recipe.stages[0].options.max_steps == 10


def test_a_random_memory_is_not_trained(base: Path, tmp_path: Path) -> None:
    recipe = recipe_of(base, tmp_path, "random_memory")
    assert recipe.memory.kv.init == "random"
    assert recipe.stages[0].options.joint is False
    assert "recover" not in stages(recipe)


def test_a_memory_from_random_numbers_is_trained(base: Path, tmp_path: Path) -> None:
    as_it_is, random = (recipe_of(base, tmp_path, row) for row in ("koff", "random_start"))
    assert (as_it_is.memory.kv.init, random.memory.kv.init) == ("text", "random")
    assert random.stages == as_it_is.stages


def test_unknown_rows_and_recipes_without_figures_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no row 'pruning-only'.*pruning_only"):
        find_row("pruning-only")
    with pytest.raises(UsageError, match=r"a study needs the figures of stage evaluate"):
        entries(base, tmp_path, ["koff"], stages=[{"learn_masks": {"max_steps": 1}}])


def test_restored_neurons_take_the_bytes_of_the_memory(base: Path, tmp_path: Path) -> None:
    mask = {"structures": ["mlp_neuron"], "global_sparsity": 0.2, "multiple_of": 4}
    memory = {"layers": "all", "lora": {"rank": 2, "alpha": 2, "targets": ["up_proj"]}, "kv": {"tokens": 3}}
    plain = recipe_of(base, tmp_path, "koff", memory=memory, mask=mask)
    restored = recipe_of(base, tmp_path, "restored_neurons", memory=memory, mask=mask)
    assert [stage.name for stage in restored.stages][:2] == ["learn_masks", "restore"]
    assert restored.memory.lora is None
    assert restored.memory.neurons is not None
    wanted = make_plan(plain, ModelSpec.open(base)).memory_bytes
    assert restored.memory.neurons.bytes == wanted
    assert 0 < make_plan(restored, ModelSpec.open(base)).memory_bytes <= wanted


def test_rows_of_equal_size_differ_in_their_parts_alone(base: Path, tmp_path: Path) -> None:
    memory = {
        "layers": "all",
        "lora": {"rank": 8, "alpha": 16, "targets": ["q_proj", "o_proj"]},
        "kv": {"tokens": 4},
        "neurons": {"count": 2},
    }
    changes = {"memory": memory, "mask": {"structures": ["mlp_neuron"], "global_sparsity": 0.2}}
    changes["stages"] = [
        {"select_masks": {}},
        {"restore": {}},
        {"recover": {"max_steps": 1}},
        {"evaluate": {}},
    ]
    spec = ModelSpec.open(base)
    found = entries(base, tmp_path, ["koff", *COMBINATIONS], **changes)
    wanted = make_plan(found.pop("koff").loaded.recipe, spec).memory_params
    for row, entry in found.items():
        recipe = entry.loaded.recipe
        assert {part for part in SIZES if getattr(recipe.memory, part) is not None} == set(COMBINATIONS[row])
        size = make_plan(recipe, spec).memory_params
        assert 0.93 * wanted < size <= wanted, row  # a rank, a token and a neuron more are the next steps
        assert ("restore" in stages(recipe)) == ("neurons" in COMBINATIONS[row])
        lora = recipe.memory.lora
        assert lora is None or lora.alpha == 2 * lora.rank > 16
    both = found["equal_neurons_kv"].loaded.recipe.memory
    assert both.neurons is not None and both.kv is not None
    assert both.kv.tokens / 4 == pytest.approx((both.neurons.count or 0) / 2, abs=0.5)


def test_rows_of_equal_size_need_their_parts(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"row equal_neurons_lora: the recipe has no memory\.neurons"):
        recipe_of(base, tmp_path, "equal_neurons_lora")
