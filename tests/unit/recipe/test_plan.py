from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from koffkit.errors import UsageError
from koffkit.recipe.load import load_recipe
from koffkit.recipe.plan import make_plan

from ...conftest import Shipped

LLAMA_3B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
    "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True, "dtype": "bfloat16",
}  # fmt: skip


def plan_for(name: str, config: dict[str, Any], *overrides: str):  # type: ignore[no-untyped-def]
    return make_plan(load_recipe(name, overrides).recipe, config)


def test_the_3b_recipe_at_its_true_shape() -> None:
    plan = plan_for("llama-3.2-3b-topics", LLAMA_3B)
    assert plan.budget.base_params == 3_212_749_824  # as the model's card says
    assert 0.12 <= plan.budget.global_sparsity < 0.1255
    assert plan.kept_per_layer["mlp_neuron"] % 64 == 0
    assert plan.backbone_bytes == 2 * plan.backbone_params
    assert 150e6 < plan.memory_params_training < 210e6  # the paper: 180M a memory
    assert plan.warnings == []


def test_memory_parameters_are_those_of_the_files(shipped: Shipped) -> None:
    loaded = load_recipe(shipped.recipe)
    import json

    config = json.loads((Path(loaded.recipe.base.model) / "config.json").read_text())
    plan = make_plan(loaded.recipe, config)
    folder = shipped.export / "memories" / "north"
    shipped_count = sum(value.numel() for file in folder.glob("*.safetensors") for value in load_file(file).values())
    trained = sum(
        value.numel() for file in (shipped.run / "memories" / "north").glob("*.safetensors") for value in load_file(file).values()
    )
    assert (plan.memory_params, plan.memory_params_training) == (shipped_count, trained)
    assert plan.memory_params < plan.memory_params_training


def test_warnings_and_refusals() -> None:
    odd = plan_for("llama-3.2-3b-topics", LLAMA_3B, "memory.lora.rank=48", "distill.top_k=3", "mask.global_sparsity=0.3")
    assert [text.partition(":")[0] for text in odd.warnings] == ["memory.lora.rank", "mask.global_sparsity", "distill.top_k"]
    with pytest.raises(UsageError, match=r"use layers 0 to 27"):
        plan_for("llama-3.2-3b-topics", LLAMA_3B, "memory.layers=[28]")


def test_more_memory_is_needed_without_gradient_checkpointing() -> None:
    less, more = (plan_for("llama-3.2-3b-topics", LLAMA_3B, f"train.gradient_checkpointing={on}") for on in ("true", "false"))
    assert less.peak_memory_bytes < more.peak_memory_bytes
    assert all(low < high for low, high in less.seconds.values())
