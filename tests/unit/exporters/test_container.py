from __future__ import annotations

import pytest
from koffkit.exporters.hf.container import complete_config, sliced_config

from koffkit.arch import Shape, architecture_of
from koffkit.errors import UsageError

from ...common import SIZES


def config_of(model_type: str, tmp_path, **changes):  # type: ignore[no-untyped-def]
    from transformers import AutoConfig

    AutoConfig.for_model(model_type, **(SIZES | {"vocab_size": 300} | changes)).save_pretrained(tmp_path)
    config = complete_config(tmp_path)
    return architecture_of(config), Shape.of(config), config


@pytest.mark.parametrize(
    ("model_type", "heads", "counts", "expected"),
    [
        ("llama", 4, {"mlp_neuron": 40}, "LlamaForCausalLM"),
        ("llama", 4, {"mlp_neuron": 40, "kv_group": 1}, "LlamaForCausalLM"),  # 32 divides by 2 heads
        ("llama", 8, {"kv_group": 3}, "MistralForCausalLM"),  # 32 does not divide by 6
        ("qwen2", 4, {"mlp_neuron": 40}, "Qwen2ForCausalLM"),
        ("qwen2", 4, {"kv_group": 1}, "SeedOssForCausalLM"),  # vLLM and llama.cpp derive head_dim
    ],
)
def test_the_class_that_can_hold_it(tmp_path, model_type, heads, counts, expected) -> None:  # type: ignore[no-untyped-def]
    arch, shape, config = config_of(model_type, tmp_path, num_attention_heads=heads, num_key_value_heads=heads // 2)
    found = sliced_config(arch, shape, config, counts)
    assert found["architectures"] == [expected]
    assert found["head_dim"] == shape.head_dim
    if "kv_group" in counts:
        assert found["num_attention_heads"] == counts["kv_group"] * 2 and found["num_key_value_heads"] == counts["kv_group"]
    if expected == "MistralForCausalLM":
        assert found["sliding_window"] is None


def test_rope_is_written_for_old_readers_and_new(tmp_path) -> None:  # type: ignore[no-untyped-def]
    scaled = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    arch, shape, config = config_of("llama", tmp_path, rope_parameters=scaled)
    found = sliced_config(arch, shape, config, {"mlp_neuron": 40})
    assert found["rope_theta"] == found["rope_parameters"]["rope_theta"] == 500000.0
    assert found["rope_scaling"]["factor"] == 32.0 and found["rope_scaling"]["rope_type"] == "llama3"


def test_what_the_container_cannot_express_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    arch, shape, config = config_of("llama", tmp_path, num_attention_heads=8, num_key_value_heads=4, attention_bias=True)
    with pytest.raises(UsageError, match=r"attention_bias: True has no counterpart in mistral.*leave kv_group out"):
        sliced_config(arch, shape, config, {"kv_group": 3})
