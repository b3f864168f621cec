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
    """Training of the memories under the finished masks; with `lr.backbone` also of what the backbone
    keeps."""


class Recover(StageKind):
    """Learns memories under fixed, hard masks."""

    name = "recover"
    options = RecoverOptions
    after = ("learn_masks",)

    def check_recipe(self, options: RecoverOptions, recipe: Recipe) -> None:
        options.check_patience(recipe.train)

    def probe(self, context: Context, options: RecoverOptions, probe: Probe) -> float:
        from ..training.backbone import begin
        from ..training.loop import DistillationLoop
        from ..training.probe import probe_training, seconds_of
        from .outputs import save_memories

        if options.lr.backbone is not None:
            begin(context)
        loop = DistillationLoop(context, self.name, options, train_gates=False)
        return probe_training(loop, probe) + seconds_of(lambda: save_memories(context))

    def run(self, context: Context, options: RecoverOptions, resume: Checkpoint | None) -> None:
        from ..training.backbone import begin, finish
        from ..training.loop import DistillationLoop
        from .outputs import save_memories

        if options.lr.backbone is not None:
            begin(context)
        DistillationLoop(context, self.name, options, train_gates=False).run(resume)
        if options.lr.backbone is not None:
            finish(context)
        save_memories(context)
