from __future__ import annotations

from typing import Any

import pytest

from koffkit.checkpoint.spec import ModelSpec
from koffkit.planning.cluster import H100, RTX_4090, estimate, layer_bytes
from koffkit.planning.plan import make_plan
from koffkit.planning.shapes import SHAPES
from koffkit.planning.work import step_work
from koffkit.recipe.load import load_recipe

from ...true_shapes import TRUE_SHAPES

SIZES = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "tie_word_embeddings"),
)
PARAMETERS = {  # billions, of the model cards
    "meta-llama/Llama-3.1-70B": 70.6,
    "meta-llama/Llama-3.1-405B": 405.9,
    "Qwen/Qwen2.5-7B": 7.62,
    "Qwen/Qwen2.5-14B": 14.8,
    "Qwen/Qwen2.5-32B": 32.8,
    "Qwen/Qwen2.5-72B": 72.7,
}


def recipe(*overrides: str) -> Any:
    return load_recipe("llama-3.2-3b-topics", list(overrides)).recipe


def spec(name: str) -> ModelSpec:
    return ModelSpec(config=SHAPES[name])


@pytest.mark.parametrize("name", TRUE_SHAPES)
def test_shapes_are_those_of_the_models(name: str) -> None:
    assert {key: SHAPES[name][key] for key in SIZES} == {key: TRUE_SHAPES[name][key] for key in SIZES}
    assert spec(name).num_parameters == ModelSpec(config=TRUE_SHAPES[name]).num_parameters


@pytest.mark.parametrize("name", PARAMETERS)
def test_larger_models_have_the_parameters_of_their_cards(name: str) -> None:
    assert spec(name).num_parameters / 1e9 == pytest.approx(PARAMETERS[name], rel=5e-3)


def test_one_accelerator_is_the_plan() -> None:
    base = spec("meta-llama/Llama-3.1-8B")
    found, plan = estimate(recipe(), base, H100, 1), make_plan(recipe(), base)
    assert (found.layout, found.fits, found.memory) == ("copies", True, plan.peak_memory_bytes)
    assert (found.fetching, found.adding, found.steps, found.sequences) == (0, 0, 22_000, 8)
    seconds = [
        stage.options.max_steps
        * H100.machine.seconds(step_work(recipe(), base, stage.options, cached=False), "bfloat16")
        for stage in recipe().stages[:2]
    ]
    assert found.seconds == pytest.approx(sum(seconds))


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("gpus", [1, 2, 8, 64, 1024])
def test_all_read_the_same_tokens(gpus: int, accumulation: int) -> None:
    found = estimate(
        recipe(f"train.gradient_accumulation={accumulation}"), spec("Qwen/Qwen2.5-3B"), H100, gpus
    )
    sequences = 8 * accumulation
    whole = 22_000 * sequences
    assert whole <= found.steps * max(sequences, gpus) < whole + 2 * gpus
    assert found.sequences == min(8, max(1, sequences // gpus))


def test_layers_are_sharded_where_the_base_does_not_fit() -> None:
    one, base = recipe("retention=null"), spec("meta-llama/Llama-3.1-70B")
    one = one.model_copy(update={"domains": {"history": one.domains["history"]}})
    alone, node, nodes = (estimate(one, base, H100, gpus) for gpus in (1, 8, 64))
    assert not alone.fits
    assert node.fits
    assert node.layout == nodes.layout == "sharded in a node"
    layers = layer_bytes(one, base)
    whole = estimate(one, base, H100, 1).memory - layers * (1 + 3 / 80) + layers
    assert whole > 140e9 > layers > 130e9
    assert node.fetching == pytest.approx(3 * layers * 7 / 8 / H100.in_node)
    assert node.seconds == pytest.approx(
        22_000 * (max(node.computing, node.fetching) + node.adding), rel=1e-3
    )
    assert nodes.memory == node.memory
    assert nodes.adding > node.adding > 0


def test_a_step_adds_up_the_gradients_of_one_memory() -> None:
    few, base = recipe(), spec("meta-llama/Llama-3.1-8B")
    few = few.model_copy(update={"domains": dict(list(few.domains.items())[:1])})
    assert estimate(few, base, H100, 8).adding == estimate(recipe(), base, H100, 8).adding > 0


def test_what_fits_nowhere_says_so() -> None:
    found = estimate(recipe(), spec("meta-llama/Llama-3.1-405B"), RTX_4090, 8)
    assert not found.fits
    assert found.layout == "sharded over all"
    assert found.memory > RTX_4090.memory
