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
    from ...model.bundles import MemoryTensors
    from ...parity.probe import Probe


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
