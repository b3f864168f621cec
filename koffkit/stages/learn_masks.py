"""Stage `learn_masks`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ..recipe.learning import Learned
from ..recipe.training import Training
from .stage import StageKind

if TYPE_CHECKING:
    from ..recipe.schema import Recipe
    from ..training.checkpoint import Checkpoint
    from ..training.context import Context
    from ..training.loop import DistillationLoop
    from ..training.probe import Probe


class LearnMasksOptions(Training):
    """Training of gates, jointly with the memories."""

    joint: bool = Field(
        True,
        description="false: masks without memories, which then learn in recover only (prune, then recover).",
    )


class LearnMasks(StageKind):
    """Learns gates and memories jointly, then projects the scores onto the exact budget (method, section
    3)."""

    name = "learn_masks"
    options = LearnMasksOptions
    learns_masks = True

    def check_recipe(self, options: LearnMasksOptions, recipe: Recipe) -> None:
        options.check_patience(recipe.train)
        if options.lr.backbone is not None:
            raise ValueError(
                f"lr.backbone: {options.lr.backbone:g} is for stage recover: what the backbone keeps is "
                "known only when the masks are; take it out of learn_masks"
            )
        if isinstance(recipe.memory.layers, Learned) and not options.joint:
            raise ValueError(
                "memory.layers.learned_bytes chooses by the memories of stage learn_masks, which has none "
                "with joint: false; leave joint out, or name the layers"
            )

    def probe(self, context: Context, options: LearnMasksOptions, probe: Probe) -> float:
        from ..training.probe import probe_training, seconds_of
        from .outputs import save_memories

        seconds = probe_training(self._loop(context, options), probe)
        return seconds + seconds_of(context.set_masks) + seconds_of(lambda: save_memories(context))

    def _loop(self, context: Context, options: LearnMasksOptions) -> DistillationLoop:
        from ..training.loop import DistillationLoop

        return DistillationLoop(context, self.name, options, train_gates=True, train_memories=options.joint)

    def run(self, context: Context, options: LearnMasksOptions, resume: Checkpoint | None) -> None:
        from ..training.placement import layers_worth_keeping
        from .outputs import save_memories

        loop = self._loop(context, options)
        loop.run(resume)
        _record_sparsity(context, self.name)
        masks = context.set_masks()
        placement = context.loaded.recipe.memory.layers
        if isinstance(placement, Learned) and loop.with_memory:
            context.keep_layers(layers_worth_keeping(loop, masks, placement.learned_bytes))
        save_memories(context)


def _record_sparsity(context: Context, stage: str) -> None:
    """Put into the results how far from their target the gates ended, and warn of it. From the metrics,
    because a stage that is resumed after its last step computes nothing anew."""
    from ..report.gates import gates_warning
    from ..run.live import last_step

    figures = last_step(context.run, stage)
    if figures is not None and "expected_sparsity" in figures:
        context.results["gates"] = {
            "expected_sparsity": figures["expected_sparsity"],
            "target": figures["sparsity"],
        }
        if "local_sparsity" in figures:
            context.results["gates"] |= {
                "local_sparsity": figures["local_sparsity"],
                "local_target": context.loaded.recipe.mask.local_sparsity,
            }
        warning = gates_warning(context.results["gates"])
        if warning is not None:
            context.progress.warn(warning)
