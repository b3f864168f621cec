"""Stage `restore`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..parallel import ranks
from ..strict import Positive, StrictModel
from .stage import StageKind

if TYPE_CHECKING:
    from ..checkpoint.spec import ModelSpec
    from ..recipe.load import LoadedRecipe
    from ..recipe.schema import Recipe
    from ..training.checkpoint import Checkpoint
    from ..training.context import Context
    from ..training.probe import Probe


class RestoreOptions(StrictModel):
    """Give each memory the removed neurons that its domain uses most (`memory.neurons`)."""

    score: Literal["sensitivity", "activation"] = Field(
        "sensitivity",
        description="How neurons are ranked: by what removing them is expected to cost, or by the size of "
        "their output.",
    )
    own_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Weight of the domain's own scores; the mean of all domains has the rest.",
    )
    batches: Positive = Field(8, description="Batches of training text of each domain that are read.")
    batch_size: Positive = Field(4, description="Sequences in a batch.")


class Restore(StageKind):
    """Chooses, under the finished masks, the neurons of every memory."""

    name = "restore"
    options = RestoreOptions
    before = ("recover", "route", "evaluate")

    def check_recipe(self, options: RestoreOptions, recipe: Recipe) -> None:
        if recipe.memory.neurons is None:
            raise ValueError(
                "stage restore has nothing to do without memory.neurons; say how many, for example "
                "memory.neurons: {count: 16}, or take the stage out"
            )

    def check(self, options: RestoreOptions, loaded: LoadedRecipe, base: ModelSpec) -> None:
        """Refuse more neurons than the mask removes.

        Raises:
            UsageError: with the field and the remedy.
        """
        from ..planning.neurons import check_neurons
        from ..planning.plan import budget_of
        from ..training.restoring import stored_dtype

        check_neurons(loaded.recipe, base, budget_of(loaded.recipe, base), stored_dtype(base).itemsize)

    def probe(self, context: Context, options: RestoreOptions, probe: Probe) -> float:
        from ..training.probe import seconds_of

        return seconds_of(lambda: self.run(context, options, None))  # there is no part of it to time

    def run(self, context: Context, options: RestoreOptions, resume: Checkpoint | None) -> None:
        from ..training.checkpoint import Checkpoint, save_checkpoint
        from ..training.neuron_repair import repair
        from ..training.restoring import choose_by_domain, silent_outputs, stored_dtype, take_neurons
        from .outputs import save_memories

        memories, wanted = context.student.memories, context.loaded.recipe.memory.neurons
        assert memories is not None and wanted is not None
        if resume is not None:
            context.resume_repair(resume.extra["repair"])
        else:
            chosen = choose_by_domain(
                context, options.score, options.own_share, options.batches, options.batch_size
            )
            spec = (context.teacher or context.student).spec
            silent = silent_outputs(spec, context.final_masks or {})
            model, dtype = (context.teacher or context.student).model, stored_dtype(context.student.spec)
            exact = {domain: take_neurons(model, places, dtype, silent) for domain, places in chosen.items()}
            columns = repair(context, exact, options.own_share)
            for domain, places in chosen.items():
                neurons = take_neurons(model, places, dtype, silent, columns.get(domain, {}))
                memories.set_neurons(domain, neurons, tuned=wanted.tuned)
            ranks.take_from_leader(context.tensors().values())
            order = [stage.name for stage in context.loaded.recipe.stages].index(self.name)
            extra = {"repair": context.learned.get("repair")}
            done = Checkpoint(self.name, 1, dict(context.tensors()), {}, extra)
            save_checkpoint(context.run.checkpoints_dir, order, done)
        save_memories(context)
