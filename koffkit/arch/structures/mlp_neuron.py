"""A neuron of the MLP: a row of gate and up, a column of down."""

from __future__ import annotations

from ..patterns import neuron
from ..spec import Cut, Structure

GATE = Cut(module="mlp.gate_proj", side="out", pattern=neuron)
UP = Cut(module="mlp.up_proj", side="out", pattern=neuron)
DOWN = Cut(module="mlp.down_proj", side="in", pattern=neuron)

STRUCTURE = Structure(
    name="mlp_neuron",
    units=lambda shape: shape.intermediate,
    cuts=(GATE, UP, DOWN),
    gate=DOWN,
    paper_gates=(GATE, UP),
    takes_multiple_of=True,
    paper_position=0,
)
