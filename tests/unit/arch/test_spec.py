from __future__ import annotations

import pytest

from koffkit.arch import Architecture, Cut, Structure, installed_structures, paper_structures
from koffkit.arch.patterns import neuron, residual
from koffkit.arch.spec import LINEAR_MODULES, Shape

SHAPE = Shape(num_layers=2, hidden=8, intermediate=12, query_heads=4, kv_heads=2, head_dim=2)
GATE_ROWS = Cut(module="mlp.gate_proj", side="out", pattern=neuron)
GATE_COLUMNS = Cut(module="mlp.gate_proj", side="in", pattern=residual)
DOWN_ROWS = Cut(module="mlp.down_proj", side="out", pattern=residual)


def structure(cuts: tuple[Cut, ...] = (), masked: tuple[Cut, ...] = ()) -> Structure:
    return Structure(
        name="x", units=lambda shape: shape.intermediate, cuts=cuts, masked_cuts=masked, gate=GATE_ROWS
    )


def test_the_paper_gates_neurons_pairs_channels_and_outputs() -> None:
    assert paper_structures() == ["mlp_neuron", "qk_pair", "v_channel", "mlp_output"]


@pytest.mark.parametrize(
    ("other", "place"),
    [
        (structure(cuts=(GATE_ROWS,)), "mlp.gate_proj"),  # the same rows
        (structure(cuts=(GATE_COLUMNS,)), "mlp.gate_proj"),  # columns of the same weight: what both cut
        (structure(masked=(GATE_ROWS,)), "mlp.gate_proj"),  # rows that are gone cannot be set to zero
        (structure(cuts=(DOWN_ROWS,)), "mlp.down_proj"),
        (structure(masked=(DOWN_ROWS,)), None),  # zero rows count for nothing
    ],
)
def test_structures_clash_where_they_cut_the_same_weights(other: Structure, place: str | None) -> None:
    neurons = installed_structures()["mlp_neuron"]
    for cut in (neurons.clash(other), other.clash(neurons)):
        assert (None if cut is None else cut.module) == place


def test_our_structures_clash_only_where_groups_hold_parts_of_heads() -> None:
    installed = installed_structures()
    pairs = {
        frozenset((a, b)) for a in installed for b in installed if a != b and installed[a].clash(installed[b])
    }
    halves = ("qk_pair", "q_k_pair", "v_channel")
    assert pairs == {frozenset(("kv_group", half)) for half in halves} | {frozenset(halves[:2])}


def test_multiple_of_applies_where_it_is_declared() -> None:
    steps = {name: entry.step_units(SHAPE, 4) for name, entry in installed_structures().items()}
    assert steps == {
        "mlp_neuron": 4,
        "kv_group": 1,
        "qk_pair": 2,
        "q_k_pair": 2,
        "v_channel": 2,
        "mlp_output": 1,
    }


def test_a_family_has_the_structures_whose_modules_it_has() -> None:
    family = Architecture(model_type="mlp_only", biases={}, modules=LINEAR_MODULES[4:])
    assert set(family.structures) == {"mlp_neuron", "mlp_output"}
