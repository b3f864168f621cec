from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from koffkit.checkpoint.spec import ModelSpec
from koffkit.errors import UsageError
from koffkit.planning.neurons import parameters_of_neuron, restored_neurons
from koffkit.planning.plan import Plan, make_plan
from koffkit.recipe.learning import RestoredNeurons
from koffkit.recipe.schema import Recipe

from ...common import recipe_dict


def plan(base: Path, root: Path, neurons: dict[str, Any], **mask: Any) -> Plan:
    tree = recipe_dict(base, root / "data")
    tree["memory"] = {"layers": "all", "lora": None, "kv": None, "neurons": neurons}
    tree["mask"] |= mask
    tree["stages"].insert(1, {"restore": {}})
    return make_plan(Recipe.model_validate(tree), ModelSpec.open(base))


def test_the_plan_counts_the_neurons_of_a_memory(llama: Path, tmp_path: Path) -> None:
    spec = ModelSpec.open(llama)
    assert parameters_of_neuron(spec) == 3 * spec.shape.hidden
    made = plan(llama, tmp_path, {"count": 2})
    assert made.memory_params == 2 * spec.num_layers * 3 * spec.shape.hidden
    assert made.memory_bytes == made.memory_params * 4 + 2 * spec.num_layers * 8
    assert made.net.total == made.backbone_bytes + 2 * made.memory_bytes


def test_bytes_are_a_limit(llama: Path) -> None:
    spec = ModelSpec.open(llama)
    one = parameters_of_neuron(spec) * 2 + 8
    ragged = RestoredNeurons(bytes=7 * one - 1, layout="ragged")
    assert restored_neurons(ragged, spec, 2) == 6
    uniform = RestoredNeurons(bytes=7 * one)
    assert restored_neurons(uniform, spec, 2) == 7 // spec.num_layers * spec.num_layers


@pytest.mark.parametrize(
    ("neurons", "mask", "message"),
    [
        (
            {"count": 10**6},
            {},
            r"count: 1,000,000 means .* the mask removes \d+, and at least",
        ),
        ({"bytes": 8}, {}, r"memory\.neurons\.bytes: 8 means 0 neurons of"),
        ({"count": 1}, {"layout": "ragged"}, r"memory\.neurons\.layout: uniform, but layers lose different"),
        (
            {"count": 1},
            {"structures": ["kv_group"], "global_sparsity": 0.02},
            r"the mask removes none .*add mlp_neuron",
        ),
    ],
)
def test_neurons_that_the_mask_does_not_remove_cannot_come_back(
    neurons: dict[str, Any], mask: dict[str, Any], message: str, llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        plan(llama, tmp_path, neurons, **mask)
