"""Stage `learn_masks`."""

from __future__ import annotations

from ..recipe.schema import Learned
from ..training.checkpoint import Checkpoint
from ..training.context import Context, stage_options
from ..training.loop import DistillationLoop
from ..training.placement import layers_worth_keeping
from .outputs import keep_layers, save_memories, set_masks


class LearnMasksStage:
    """Gates and memories jointly; ends with the projection of the scores onto the exact budget (method,
    section 3)."""

    name = "learn_masks"

    def run(self, context: Context, resume: Checkpoint | None) -> None:
        options = stage_options(context, self.name)
        loop = DistillationLoop(context, self.name, options, train_gates=True)
        loop.run(resume)
        masks = set_masks(context)
        placement = context.loaded.recipe.memory.layers
        if isinstance(placement, Learned) and loop.with_memory:
            keep_layers(context, layers_worth_keeping(loop, masks, placement.learned_bytes))
        save_memories(context)
