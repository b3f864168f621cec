"""The memory that a run needs, held against runs of a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from koffkit.checkpoint.spec import ModelSpec
from koffkit.planning.plan import make_plan
from koffkit.recipe.load import recipe_from_tree

SMOLLM2 = ModelSpec(
    config={
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "dtype": "bfloat16",
    }
)
NEURONS = {
    "layers": "all",
    "lora": None,
    "kv": None,
    "neurons": {"count": 86, "layout": "ragged", "tuned": True},
}


def planned(tmp_path: Path, stages: list[Any], topics: int = 2, memory: Any = None, **mask: Any) -> int:
    tree = {
        "koffkit": 1,
        "name": "peak",
        "base": {"model": "m", "dtype": "float32"},
        "domains": {name: {"text": f"{name}.txt"} for name in "abcdef"[:topics]},
        "sequence_length": 512,
        "memory": memory
        or {"layers": "all", "lora": {"rank": 1, "alpha": 1, "targets": ["down_proj"]}, "kv": None},
        "mask": {"structures": ["mlp_neuron"], "global_sparsity": 0.2, "layout": "ragged"} | mask,
        "stages": stages,
    }
    return make_plan(recipe_from_tree(tree, [], tmp_path).recipe, SMOLLM2).peak_memory_bytes


@pytest.mark.parametrize(
    ("batch_size", "measured"), [(1, 2_466_140_160), (2, 3_589_836_800), (4, 5_581_475_840)]
)
def test_a_selector_that_needs_slopes(tmp_path: Path, batch_size: int, measured: int) -> None:
    found = planned(tmp_path, [{"select_masks": {"selector": "sensitivity", "batch_size": batch_size}}])
    assert found == pytest.approx(measured, rel=0.1)


def test_a_selector_that_only_looks_needs_less(tmp_path: Path) -> None:
    peaks = [planned(tmp_path, [{"select_masks": {"selector": name}}]) for name in ("activation", "fisher")]
    assert peaks[0] < 0.7 * peaks[1]


def test_memories_that_are_ranked_and_fitted(tmp_path: Path) -> None:
    """benchmarks/real/trained.yaml with 20 % gone."""
    stages = [
        {"select_masks": {"selector": "sensitivity", "batch_size": 2}},
        {"restore": {"batch_size": 2}},
        {"recover": {"max_steps": 96, "batch_size": 1, "lr": {"neurons": 1e-4, "backbone": 3e-4}}},
    ]
    repaired = {"repair": "least_squares", "repair_tokens": 49152}
    assert planned(tmp_path, stages, 6, NEURONS, **repaired) == pytest.approx(4_410_138_624, rel=0.1)
    ranked = [{"select_masks": {"selector": "magnitude"}}, {"restore": {"score": "activation"}}]
    learned = [{"select_masks": {"selector": "magnitude"}}, {"restore": {"score": "learned"}}]
    assert planned(tmp_path, learned, 6, NEURONS) > 1.5 * planned(tmp_path, ranked, 6, NEURONS)
    with_fit, without = (planned(tmp_path, ranked, 6, NEURONS, **mask) for mask in (repaired, {}))
    more = [
        planned(tmp_path, ranked, 6, NEURONS, **(repaired | {"repair_tokens": tokens}))
        for tokens in (49152, 98304)
    ]
    assert with_fit > without + 2e8
    assert more[1] - more[0] == 5 * 49152 * 576 * 4
