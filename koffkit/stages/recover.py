"""Stage `recover`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..recipe.training import Training
from .stage import StageKind

if TYPE_CHECKING:
    from ..recipe.schema import Recipe
    from ..training.checkpoint import Checkpoint
    from ..training.context import Context
    from ..training.probe import Probe


class RecoverOptions(Training):
    """Training of the memories alone, under the finished masks."""


class Recover(StageKind):
    """Learns memories under fixed, hard masks."""

    name = "recover"
    options = RecoverOptions
    after = ("learn_masks",)

    def check_recipe(self, options: RecoverOptions, recipe: Recipe) -> None:
        options.check_patience(recipe.train)

    def probe(self, context: Context, options: RecoverOptions, probe: Probe) -> float:
        from ..training.loop import DistillationLoop
        from ..training.probe import probe_training, seconds_of
        from .outputs import save_memories

        loop = DistillationLoop(context, self.name, options, train_gates=False)
        return probe_training(loop, probe) + seconds_of(lambda: save_memories(context))

    def run(self, context: Context, options: RecoverOptions, resume: Checkpoint | None) -> None:
        from ..training.loop import DistillationLoop
        from .outputs import save_memories

        DistillationLoop(context, self.name, options, train_gates=False).run(resume)
        save_memories(context)
