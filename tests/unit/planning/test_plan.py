from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from koffkit.arch import Shape
from koffkit.arch.weights import vocab_size
from koffkit.checkpoint.spec import ModelSpec
from koffkit.embedded import path as embedded_path
from koffkit.errors import UsageError
from koffkit.planning.plan import make_plan
from koffkit.recipe.builtin import shipped
from koffkit.recipe.load import load_recipe
from koffkit.recipe.schema import Recipe

from ...common import recipe_dict
from ...conftest import Shipped
from ...true_shapes import LLAMA_3B, LLAMA_8B, TRUE_SHAPES

EMBEDDED = ModelSpec.open(embedded_path("base")).config
LARGE = [name for name in shipped() if name != "quickstart"]


def plan_for(name: str, config: dict[str, Any], *overrides: str):  # type: ignore[no-untyped-def]
    return make_plan(load_recipe(name, overrides).recipe, ModelSpec(config=config))


def test_the_3b_recipe_at_its_true_shape() -> None:
    plan = plan_for("llama-3.2-3b-topics", LLAMA_3B)
    assert plan.budget.base_params == 3_212_749_824  # as the model's card says
    assert 0.12 <= plan.budget.global_sparsity < 0.1255
    assert plan.kept_per_layer["mlp_neuron"] % 64 == 0
    assert plan.backbone_bytes == 2 * plan.backbone_params
    assert plan.warnings == []


@pytest.mark.parametrize("name", LARGE)
def test_every_recipe_for_a_large_model_fits_its_true_shape(name: str) -> None:
    recipe = load_recipe(name).recipe
    plan = plan_for(name, TRUE_SHAPES[recipe.base.model])
    budget = plan.budget
    assert recipe.mask.global_sparsity <= budget.global_sparsity < recipe.mask.global_sparsity + 0.006
    assert budget.target_params <= budget.removed_params < budget.target_params + budget.step_params
    assert (plan.memory_params > 0) == recipe.memory.is_on
    assert recipe.servable == (not name.startswith("paper/") and recipe.memory.neurons is None)


@pytest.mark.parametrize(("model", "config"), TRUE_SHAPES.items())
def test_parameters_are_those_of_the_model_on_the_meta_device(model: str, config: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        count = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).num_parameters()
    assert plan_for("paper/1b/hinge-15", config).budget.base_params == count


@pytest.mark.parametrize(("model", "millions"), [("llama-3.2-3b", 180), ("llama-3.1-8b", 277)])
def test_a_memory_has_as_many_parameters_as_the_paper_says(model: str, millions: int) -> None:
    config = LLAMA_3B if model == "llama-3.2-3b" else LLAMA_8B
    plan = plan_for(f"paper/{model}-topics", config)
    assert len(plan.memory_layers) == 16
    assert plan.memory_params_training / 1e6 == pytest.approx(millions, abs=1)


def test_learned_placement_has_as_many_layers_as_its_bytes_hold() -> None:
    whole = plan_for("quickstart", EMBEDDED)
    one = whole.memory_bytes // 6
    for layers in (1, 4):
        plan = plan_for("quickstart", EMBEDDED, f"memory.layers={{learned_bytes: {one * layers + 5}}}")
        assert plan.memory_bytes == one * layers
        assert plan.num_memory_layers == layers
        assert plan.memory_layers == list(range(6))
    with pytest.raises(UsageError, match=r"learned_bytes: 9 do not hold the memory of one layer \("):
        plan_for("quickstart", EMBEDDED, "memory.layers={learned_bytes: 9}")


def test_memory_parameters_are_those_of_the_files(shipped: Shipped) -> None:
    loaded = load_recipe(shipped.recipe)
    import json

    config = json.loads((Path(loaded.recipe.base.model) / "config.json").read_text())
    plan = make_plan(loaded.recipe, ModelSpec(config=config))
    folder = shipped.export / "memories" / "north"
    shipped_count = sum(
        value.numel() for file in folder.glob("*.safetensors") for value in load_file(file).values()
    )
    trained = sum(
        value.numel()
        for file in (shipped.run / "memories" / "north").glob("*.safetensors")
        for value in load_file(file).values()
    )
    assert (plan.memory_params, plan.memory_params_training) == (shipped_count, trained)
    assert plan.memory_params < plan.memory_params_training


def test_warnings_and_refusals() -> None:
    changes = ("servable=false", "mask.multiple_of=64", "memory.lora.rank=48", "distill.top_k=3")
    odd = plan_for("llama-3.2-3b-topics", LLAMA_3B, *changes, "mask.global_sparsity=0.3")
    assert [text.partition(":")[0] for text in odd.warnings] == [
        "memory.lora.rank",
        "mask.global_sparsity",
        "distill.top_k",
    ]
    with pytest.raises(UsageError, match=r"use layers 0 to 27"):
        plan_for("llama-3.2-3b-topics", LLAMA_3B, "servable=false", "memory.layers=[28]")


def test_a_learned_placement_without_recover_is_warned_of() -> None:
    placed = "memory.layers={learned_bytes: 1200000}"
    assert not plan_for("quickstart", EMBEDDED, placed).warnings
    alone = plan_for("quickstart", EMBEDDED, placed, "stages=[learn_masks: {max_steps: 3}]").warnings
    assert len(alone) == 1 and "without stage recover" in alone[0]


def test_more_memory_is_needed_without_gradient_checkpointing() -> None:
    less, more = (
        plan_for("llama-3.2-3b-topics", LLAMA_3B, f"train.gradient_checkpointing={on}")
        for on in ("true", "false")
    )
    assert less.peak_memory_bytes < more.peak_memory_bytes
    assert all(low < high for low, high in less.seconds.values())


def test_sequences_longer_than_the_model_are_warned_of(llama: Path, tmp_path: Path) -> None:
    for length, warnings in ((128, 0), (129, 1)):
        recipe = Recipe.model_validate(recipe_dict(llama, tmp_path, sequence_length=length))
        said = [
            text for text in make_plan(recipe, ModelSpec.open(llama)).warnings if "sequence_length" in text
        ]
        assert len(said) == warnings
    assert "sequence_length: 129 tokens" in said[0]
    assert "max_position_embeddings = 128" in said[0]


def test_sizes_that_a_config_leaves_to_transformers() -> None:
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 8, "num_attention_heads": 32}
    shape = Shape.of(sizes | {"model_type": "qwen3"})
    assert (shape.head_dim, shape.kv_heads) == (128, 32)
    assert Shape.of(sizes | {"model_type": "mistral"}).kv_heads == 8
    with pytest.raises(UsageError, match=r"config\.json: vocab_size: None"):
        vocab_size(sizes)
