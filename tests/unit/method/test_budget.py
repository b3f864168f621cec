"""The budget is exact: at least the target, at most one layout step more, and equal to what transformers
counts."""

from __future__ import annotations

import pytest

from koffkit.arch import Architecture, architecture_of, supported
from koffkit.arch.spec import LINEAR_MODULES
from koffkit.checkpoint.spec import ModelSpec
from koffkit.errors import UsageError
from koffkit.method.budget import plan_budget

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 128,
}
CONFIGS = [
    LLAMA,
    LLAMA | {"tie_word_embeddings": True},
    LLAMA | {"attention_bias": True, "mlp_bias": True},
    LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True},
    LLAMA | {"model_type": "qwen3", "head_dim": 16},
    LLAMA | {"model_type": "qwen3", "head_dim": 16, "attention_bias": True, "tie_word_embeddings": True},
    LLAMA | {"model_type": "mistral", "head_dim": 12},
    LLAMA | {"model_type": "granite", "mlp_bias": True},
    LLAMA | {"model_type": "smollm3", "pad_token_id": 2},
    LLAMA | {"model_type": "gemma3_text", "head_dim": 16},
]


def test_every_architecture_is_tested() -> None:
    assert {config["model_type"] for config in CONFIGS} == set(supported())


@pytest.mark.parametrize("config", CONFIGS)
def test_count_equals_transformers(config: dict) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert ModelSpec(config=config).num_parameters == model.num_parameters()
    there = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        there.pop("lm_head.weight")
    assert ModelSpec(config=config).weight_shapes == there


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("sparsity", [0.01, 0.12, 0.33, 0.45])
@pytest.mark.parametrize("structures", [["mlp_neuron"], ["mlp_neuron", "kv_group"]])
@pytest.mark.parametrize("multiple_of", [1, 8])
def test_removed_is_target_to_within_one_step(
    config: dict, sparsity: float, structures: list[str], multiple_of: int
) -> None:
    budget = plan_budget(ModelSpec(config=config), structures, sparsity, multiple_of)
    assert budget.target_params <= budget.removed_params < budget.target_params + budget.step_params
    assert budget.target_params == pytest.approx(sparsity * budget.base_params, abs=1)
    assert budget.keep["mlp_neuron"] % multiple_of == 0


def test_unreachable_names_the_largest_value() -> None:
    with pytest.raises(UsageError, match=r"global_sparsity: 0\.95 is unreachable.*at most 0\.\d+"):
        plan_budget(ModelSpec(config=LLAMA), ["mlp_neuron"], 0.95)


def test_multiple_of_larger_than_layer() -> None:
    with pytest.raises(UsageError, match="multiple_of: 512 cannot be met"):
        plan_budget(ModelSpec(config=LLAMA), ["mlp_neuron"], 0.1, 512)


def test_unsupported_model_type_names_the_supported() -> None:
    with pytest.raises(
        UsageError, match=r"gpt2.*gemma3_text, granite, llama, mistral, qwen2, qwen3, smollm3"
    ):
        architecture_of({"model_type": "gpt2"})


@pytest.mark.parametrize(
    ("model_type", "structures", "message"),
    [
        (
            "qwen3",
            ["mlp_neuron", "qk_pair"],
            r"qk_pair cannot be removed from qwen3: its RMS norm .* use kv_group or v_channel",
        ),
        (
            "llama",
            ["kv_group", "v_channel"],
            r"kv_group and v_channel overlap \(both cut self_attn.v_proj\); choose one",
        ),
        (
            "llama",
            ["mlp_output"],
            r"mlp_output is masked only and removes no parameters; add one of kv_group, mlp_neuron, ",
        ),
    ],
)
def test_structures_that_do_not_go_together(model_type: str, structures: list[str], message: str) -> None:
    config = LLAMA | {"model_type": model_type}
    with pytest.raises(UsageError, match=message):
        plan_budget(ModelSpec(config=config), structures, 0.1)


def test_a_structure_needs_the_modules_that_it_cuts() -> None:
    spec = ModelSpec(config=LLAMA)
    spec.__dict__["arch"] = Architecture(model_type="mlp_only", biases={}, modules=LINEAR_MODULES[4:])
    with pytest.raises(UsageError, match=r"kv_group cannot be removed from mlp_only: it needs modules"):
        plan_budget(spec, ["mlp_neuron", "kv_group"], 0.1)


def test_a_model_with_softcapped_logits_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"final_logit_softcapping: 30.0 is not supported: the distillation loss"
    ):
        architecture_of(LLAMA | {"model_type": "gemma3_text", "final_logit_softcapping": 30.0})


@pytest.mark.parametrize(
    "structures", [["qk_pair", "v_channel"], ["mlp_neuron", "qk_pair", "v_channel", "mlp_output"]]
)
@pytest.mark.parametrize("sparsity", [0.02, 0.1])
def test_parts_of_heads_go_from_all_heads_alike_and_masked_units_count_for_nothing(
    structures: list[str], sparsity: float
) -> None:
    budget = plan_budget(ModelSpec(config=LLAMA), structures, sparsity)
    assert budget.target_params <= budget.removed_params < budget.target_params + budget.step_params
    assert budget.keep["qk_pair"] % 4 == 0 and budget.keep["v_channel"] % 4 == 0
    assert (
        budget.removed_by({name: [count] * 3 for name, count in budget.keep.items()}) == budget.removed_params
    )
    if "mlp_output" in structures:
        assert 0 < budget.keep["mlp_output"] <= 64 and budget.params_per_unit["mlp_output"] == 0


def test_ragged_steps_are_of_one_layer() -> None:
    uniform, ragged = (
        plan_budget(ModelSpec(config=LLAMA), ["mlp_neuron"], 0.2, 8, x) for x in ("uniform", "ragged")
    )
    assert (
        ragged.step_params * 3 == uniform.step_params
        and ragged.removed_params == ragged.target_params == uniform.target_params
    )
