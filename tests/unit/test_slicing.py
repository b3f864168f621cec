from __future__ import annotations

import numpy as np
import pytest

from koffkit.arch import Shape, architecture_of
from koffkit.errors import UsageError
from koffkit.slicing import adapter_slices, backbone_slices, kv_memory_slices, take, uniform_counts

CONFIG = {
    "model_type": "qwen2",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ARCH, SHAPE = architecture_of(CONFIG), Shape.of(CONFIG)  # head_dim 2, two query heads a group
MASKS = {
    (1, "kv_group"): np.array([False, True]),
    (1, "mlp_neuron"): np.array([True, False, True, True, False, True]),
}


def test_a_group_takes_its_queries_keys_values_biases_and_output_columns_along() -> None:
    cuts = backbone_slices(ARCH, SHAPE, MASKS)
    at = "model.layers.1.self_attn."
    assert cuts[f"{at}q_proj.weight"][0].tolist() == cuts[f"{at}q_proj.bias"][0].tolist() == [4, 5, 6, 7]
    assert cuts[f"{at}o_proj.weight"][1].tolist() == [4, 5, 6, 7] and 0 not in cuts[f"{at}o_proj.weight"]
    for name in ("k_proj", "v_proj"):
        assert cuts[f"{at}{name}.weight"][0].tolist() == cuts[f"{at}{name}.bias"][0].tolist() == [2, 3]


def test_a_neuron_takes_gate_and_up_rows_and_down_columns_along() -> None:
    cuts = backbone_slices(ARCH, SHAPE, MASKS)
    at, kept = "model.layers.1.mlp.", [0, 2, 3, 5]
    assert cuts[f"{at}gate_proj.weight"][0].tolist() == cuts[f"{at}up_proj.weight"][0].tolist() == kept
    assert cuts[f"{at}down_proj.weight"][1].tolist() == kept
    assert not any(".layers.0." in name for name in cuts)


def test_lora_is_cut_where_the_weights_are() -> None:
    cuts = adapter_slices(ARCH, SHAPE, MASKS)
    at = "base_model.model.model.layers.1."
    assert cuts[f"{at}mlp.up_proj.lora_B.weight"][0].tolist() == [0, 2, 3, 5]
    assert cuts[f"{at}mlp.down_proj.lora_A.weight"][1].tolist() == [0, 2, 3, 5]
    assert cuts[f"{at}self_attn.o_proj.lora_A.weight"][1].tolist() == [4, 5, 6, 7]
    assert f"{at}mlp.up_proj.lora_A.weight" not in cuts and f"{at}mlp.down_proj.lora_B.weight" not in cuts


def test_a_kv_memory_loses_the_heads_of_its_groups_only() -> None:
    cuts = kv_memory_slices(ARCH, MASKS)
    assert {name: cut[0].tolist() for name, cut in cuts.items()} == {"layers.1.key": [1], "layers.1.value": [1]}


def test_sliced_lora_computes_what_masked_lora_computes() -> None:
    """y = z * (W x + B A x): rows of B go with rows of W."""
    generator = np.random.default_rng(0)
    w, b, a, x = (generator.normal(size=size) for size in ((6, 8), (6, 3), (3, 8), (8,)))
    rows = {0: adapter_slices(ARCH, SHAPE, MASKS)["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"][0]}
    masked = MASKS[1, "mlp_neuron"] * (w @ x + b @ (a @ x))
    np.testing.assert_allclose(take(w, rows) @ x + take(b, rows) @ (a @ x), masked[MASKS[1, "mlp_neuron"]])


def test_uniform_counts_refuses_ragged_masks() -> None:
    with pytest.raises(UsageError, match=r"different counts of mlp_neuron \(4 to 5\); format hf needs layout uniform"):
        uniform_counts(MASKS | {(0, "mlp_neuron"): np.array([True] * 5 + [False])})
    assert uniform_counts(MASKS) == {"kv_group": 1, "mlp_neuron": 4}
