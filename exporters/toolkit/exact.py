"""koffkit's own logits of a checkpoint in float64, which other software is held against.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ...artefact.bundle import Bundle
    from ...artefact.manifest import Consumer
    from ...model.bundles import MemoryTensors
    from ...parity.probe import Probe
    from .parity import ParityFigures


FLOORS = 10
"""How many times what float32 rounding does to koffkit's own logits other software's may differ by."""
LEAST = 1e-5
"""Of the largest |logit|: a limit that float32 can always be held to."""


def limit_of(figures: ParityFigures, condition: str) -> float:
    """How far a logit of other software may be off in float32.

    Args:
        figures: of the parity gate.
        condition: `none`, or a domain.
    """
    noise, largest = figures.parity.noise_floor, figures.parity.max_logit
    assert noise is not None
    key = condition if condition in largest else next(iter(largest))  # of a merged memory there is one entry
    return max(FLOORS * noise.max_abs[key], LEAST * largest[key])


def measured_rows(consumer: Consumer) -> str:
    """The rows of a README's table: condition, largest difference, KL, greedy tokens."""
    return "\n".join(
        f"| {name} | {consumer.max_abs[name]:.1e} | {consumer.kl[name]:.1e} | {consumer.greedy[name]} of "
        f"{consumer.tokens} |"
        for name in consumer.max_abs
    )


class ExactLogits:
    """Logits in float64.

    Args:
        checkpoint: a sliced backbone.
        memories: its memories.
    """

    def __init__(self, checkpoint: Path, memories: Sequence[Bundle | MemoryTensors]) -> None:
        from ...parity.probe import Probe

        self._probe: Probe = Probe(checkpoint, memories)

    def logits(self, tokens: Sequence[int], name: str | None) -> Tensor:
        """[T, V] of one text with one memory, or none."""
        import torch

        hidden = self._probe.hidden(tokens, [name])
        return torch.cat([part for _, part in self._probe.logits(hidden)], dim=-1)[0].double()
