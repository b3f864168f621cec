"""A row of the MLP's down projection: masked only, because the residual stream keeps its width."""

from __future__ import annotations

from ..patterns import residual
from ..spec import Cut, Structure

ROWS = Cut(module="mlp.down_proj", side="out", pattern=residual)

STRUCTURE = Structure(
    name="mlp_output",
    units=lambda shape: shape.hidden,
    masked_cuts=(ROWS,),
    gate=ROWS,
    paper_position=3,
)
