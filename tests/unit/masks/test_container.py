from __future__ import annotations

import numpy as np
import pytest

from koffkit.arch.widths import layer_widths
from koffkit.masks.container import open_complete, sliced_config

from ...common import SIZES


def masks_of(spec, counts):  # type: ignore[no-untyped-def]
    """The first units of every layer."""
    return {
        (layer, name): np.arange(spec.arch.structures[name].num_units(spec.shape)) < count
        for name, count in counts.items()
        for layer in range(spec.num_layers)
    }


def config_of(model_type: str, tmp_path, **changes):  # type: ignore[no-untyped-def]
    from transformers import AutoConfig

    AutoConfig.for_model(model_type, **(SIZES | {"vocab_size": 300} | changes)).save_pretrained(tmp_path)
    return open_complete(tmp_path)


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
    spec = config_of(model_type, tmp_path, num_attention_heads=heads, num_key_value_heads=heads // 2)
    config = sliced_config(spec, masks_of(spec, counts))
    assert config["architectures"] == [expected]
    assert config["head_dim"] == spec.shape.head_dim
    if "kv_group" in counts:
        assert (
            config["num_attention_heads"] == counts["kv_group"] * 2
            and config["num_key_value_heads"] == counts["kv_group"]
        )
    if expected == "MistralForCausalLM":
        assert config["sliding_window"] is None


def test_rope_is_written_for_old_readers_and_new(tmp_path) -> None:  # type: ignore[no-untyped-def]
    scaled = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    spec = config_of("llama", tmp_path, rope_parameters=scaled)
    config = sliced_config(spec, masks_of(spec, {"mlp_neuron": 40}))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500000.0
    assert config["rope_scaling"]["factor"] == 32.0 and config["rope_scaling"]["rope_type"] == "llama3"


def test_what_no_stock_class_computes_gets_our_own(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Mistral has no biases; Gemma 3 has no other class and refuses what its hidden size does not divide."""
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4}
    for model_type, changes in (("llama", {"attention_bias": True}), ("gemma3_text", {"head_dim": 4})):
        spec = config_of(model_type, tmp_path, **sizes, **changes)
        config = sliced_config(spec, masks_of(spec, {"kv_group": 3}))
        assert config["model_type"] == f"koffkit_{model_type}" and config["auto_map"][
            "AutoConfig"
        ].startswith("modeling_koffkit.Koff")
        assert [layer["kv_heads"] for layer in config["sliced_layers"]] == [3, 3, 3]


def test_layers_that_differ_are_recorded_one_by_one(tmp_path) -> None:  # type: ignore[no-untyped-def]
    spec = config_of("llama", tmp_path)
    masks = masks_of(spec, {"mlp_neuron": 40, "qk_pair": 8, "v_channel": 16})
    masks[1, "mlp_neuron"][:10] = False
    pairs = np.zeros((2, 4), dtype=bool)
    pairs[0, [0, 3]] = pairs[1, [1, 2]] = True
    masks[2, "qk_pair"] = pairs.reshape(-1)
    masks[0, "v_channel"] = np.tile(np.arange(8) < 5, 2)
    config = sliced_config(spec, masks)
    assert [layer["intermediate"] for layer in config["sliced_layers"]] == [40, 30, 40]
    assert [layer["rope_pairs"] for layer in config["sliced_layers"]] == [["f", "f"], ["f", "f"], ["9", "6"]]
    assert [layer["value_channels"] for layer in config["sliced_layers"]] == [5, 8, 8]
    assert [w.key_channels for w in layer_widths(config, spec.shape)] == [8, 8, 4]


def test_gemma_with_scaled_rotary_frequencies_is_written_for_old_readers_and_new(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The frequencies that transformers 5 computes from the file are those of the base, and follow from the
    keys of 4.x alone as well: theta and a linear factor for full attention, theta alone for the windows."""
    import json

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    rope = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    spec = config_of("gemma3_text", tmp_path, head_dim=8, layer_types=kinds, rope_parameters=rope)
    written = sliced_config(spec, masks_of(spec, {"mlp_neuron": 40}))
    (tmp_path / "new").mkdir()
    (tmp_path / "new/config.json").write_text(json.dumps(written))
    even = torch.arange(0, 8, 2) / 8
    old = {
        "full_attention": 1 / written["rope_theta"] ** even / written["rope_scaling"]["factor"],
        "sliding_attention": 1 / written["rope_local_base_freq"] ** even,
    }
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    for folder in (tmp_path, tmp_path / "new"):
        rotary = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).model.rotary_emb
        for kind, frequencies in old.items():
            assert torch.allclose(getattr(rotary, f"{kind}_inv_freq"), frequencies, rtol=1e-6)
