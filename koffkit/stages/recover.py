"""Stage `recover`."""

from __future__ import annotations

from ..training.checkpoint import Checkpoint
from ..training.context import Context, stage_options
from ..training.loop import DistillationLoop
from .outputs import save_memories


class RecoverStage:
    """Mask fixed and hard, memories only."""

    name = "recover"

    def run(self, context: Context, resume: Checkpoint | None) -> None:
        options = stage_options(context, self.name)
        loop = DistillationLoop(context, self.name, options, train_gates=False)
        loop.run(resume)
        save_memories(context)
