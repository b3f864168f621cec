from __future__ import annotations

import numpy as np

from koffkit.checkpoint.spec import ModelSpec
from koffkit.masks.slicing import (
    adapter_slices,
    backbone_slices,
    kv_memory_keeps,
    needs_own_class,
    take,
    take_kv,
    widths_of,
    zero_rows,
)

CONFIG = {
    "model_type": "qwen2",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SPEC = ModelSpec(config=CONFIG)  # head_dim 2, two query heads a group
MASKS = {
    (1, "kv_group"): np.array([False, True]),
    (1, "mlp_neuron"): np.array([True, False, True, True, False, True]),
}


def test_a_group_takes_its_queries_keys_values_biases_and_output_columns_along() -> None:
    cuts = backbone_slices(SPEC, MASKS)
    at = "model.layers.1.self_attn."
    assert cuts[f"{at}q_proj.weight"][0].tolist() == cuts[f"{at}q_proj.bias"][0].tolist() == [4, 5, 6, 7]
    assert cuts[f"{at}o_proj.weight"][1].tolist() == [4, 5, 6, 7] and 0 not in cuts[f"{at}o_proj.weight"]
    for name in ("k_proj", "v_proj"):
        assert cuts[f"{at}{name}.weight"][0].tolist() == cuts[f"{at}{name}.bias"][0].tolist() == [2, 3]


def test_a_neuron_takes_gate_and_up_rows_and_down_columns_along() -> None:
    cuts = backbone_slices(SPEC, MASKS)
    at, kept = "model.layers.1.mlp.", [0, 2, 3, 5]
    assert cuts[f"{at}gate_proj.weight"][0].tolist() == cuts[f"{at}up_proj.weight"][0].tolist() == kept
    assert cuts[f"{at}down_proj.weight"][1].tolist() == kept
    assert not any(".layers.0." in name for name in cuts)


def test_lora_is_cut_where_the_weights_are() -> None:
    cuts = adapter_slices(SPEC, MASKS)
    at = "base_model.model.model.layers.1."
    assert cuts[f"{at}mlp.up_proj.lora_B.weight"][0].tolist() == [0, 2, 3, 5]
    assert cuts[f"{at}mlp.down_proj.lora_A.weight"][1].tolist() == [0, 2, 3, 5]
    assert cuts[f"{at}self_attn.o_proj.lora_A.weight"][1].tolist() == [4, 5, 6, 7]
    assert f"{at}mlp.up_proj.lora_A.weight" not in cuts and f"{at}mlp.down_proj.lora_B.weight" not in cuts


def test_a_kv_memory_loses_the_heads_of_its_groups_only() -> None:
    keeps = kv_memory_keeps(SPEC, MASKS)
    assert set(keeps) == {"layers.1.key", "layers.1.value"}
    memory = np.arange(2 * 3 * 2).reshape(2, 3, 2)
    for keep in keeps.values():
        np.testing.assert_array_equal(take_kv(memory, keep), memory[1:])


def test_sliced_lora_computes_what_masked_lora_computes() -> None:
    """y = z * (W x + B A x): rows of B go with rows of W."""
    generator = np.random.default_rng(0)
    w, b, a, x = (generator.normal(size=size) for size in ((6, 8), (6, 3), (3, 8), (8,)))
    rows = {0: adapter_slices(SPEC, MASKS)["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"][0]}
    masked = MASKS[1, "mlp_neuron"] * (w @ x + b @ (a @ x))
    np.testing.assert_allclose(take(w, rows) @ x + take(b, rows) @ (a @ x), masked[MASKS[1, "mlp_neuron"]])


WIDE = CONFIG | {"head_dim": 8}  # four pairs a head
PAIRS = np.array([[True, False, False, True], [False, True, True, False]])


def test_a_rope_pair_takes_both_channels_of_its_key_head_and_of_every_query() -> None:
    shape = ModelSpec(config=WIDE)
    cuts = backbone_slices(shape, {(0, "qk_pair"): PAIRS.reshape(-1)})
    at = "model.layers.0.self_attn."
    assert cuts[f"{at}k_proj.weight"][0].tolist() == [0, 3, 4, 7, 9, 10, 13, 14]
    assert cuts[f"{at}q_proj.weight"][0].tolist() == [
        0,
        3,
        4,
        7,
        8,
        11,
        12,
        15,
        17,
        18,
        21,
        22,
        25,
        26,
        29,
        30,
    ]
    assert not any("v_proj" in name or "o_proj" in name for name in cuts)
    keep = kv_memory_keeps(shape, {(0, "qk_pair"): PAIRS.reshape(-1)})
    memory = np.arange(2 * 8).reshape(2, 1, 8)
    assert set(keep) == {"layers.0.key"}
    assert take_kv(memory, keep["layers.0.key"]).tolist() == [[[0, 3, 4, 7]], [[9, 10, 13, 14]]]


def test_a_value_channel_takes_the_output_columns_of_every_query_along() -> None:
    shape, values = ModelSpec(config=WIDE), np.tile(np.arange(8) < 2, 2)
    cuts = backbone_slices(shape, {(0, "v_channel"): values})
    at = "model.layers.0.self_attn."
    assert cuts[f"{at}v_proj.weight"][0].tolist() == cuts[f"{at}v_proj.bias"][0].tolist() == [0, 1, 8, 9]
    assert cuts[f"{at}o_proj.weight"][1].tolist() == [0, 1, 8, 9, 16, 17, 24, 25]


def test_a_channel_stays_when_everything_that_owns_it_keeps_it() -> None:
    """Recipes do not combine these two; slicing does not rely on that."""
    shape = ModelSpec(config=WIDE)
    masks = {(0, "kv_group"): np.array([False, True]), (0, "v_channel"): np.tile(np.arange(8) < 2, 2)}
    assert backbone_slices(shape, masks)["model.layers.0.self_attn.v_proj.weight"][0].tolist() == [8, 9]
    assert kv_memory_keeps(shape, masks)["layers.0.value"].sum(1).tolist() == [0, 2]


def test_a_masked_output_row_is_zero_and_stays() -> None:
    keep = np.array([True] * 6 + [False] * 2)
    masks = {(0, "mlp_output"): keep}
    assert backbone_slices(SPEC, masks) == {} and adapter_slices(SPEC, masks) == {}
    rows = zero_rows(SPEC, masks)
    at = "model.layers.0.mlp.down_proj"
    assert set(rows) == {f"{at}.weight", f"{at}.bias", f"base_model.model.{at}.lora_B.weight"}
    assert all(indices.tolist() == [6, 7] for indices in rows.values())


def test_which_results_a_stock_class_holds() -> None:
    same = {(layer, "mlp_neuron"): np.arange(6) < 4 for layer in (0, 1)}
    assert not needs_own_class(SPEC, same)
    assert not needs_own_class(SPEC, {(layer, "mlp_neuron"): np.arange(6) % 3 != layer for layer in (0, 1)})
    assert needs_own_class(SPEC, same | {(0, "mlp_neuron"): np.arange(6) < 5})
    assert needs_own_class(
        ModelSpec(config=WIDE), same | {(layer, "qk_pair"): PAIRS.reshape(-1) for layer in (0, 1)}
    )
    assert [w.intermediate for w in widths_of(SPEC, MASKS)] == [6, 4]
