"""Stage `restore`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from ..parallel import ranks
from ..strict import Positive, StrictModel
from .stage import StageKind

if TYPE_CHECKING:
    from ..checkpoint.spec import ModelSpec
    from ..recipe.load import LoadedRecipe
    from ..recipe.schema import Recipe
    from ..training.checkpoint import Checkpoint
    from ..training.choosing import Learning
    from ..training.context import Context
    from ..training.probe import Probe


STEPS, LR = 24, 4.0
"""Of a learned choice, by default."""


class RestoreOptions(StrictModel):
    """Give each memory the removed neurons that its domain uses most (`memory.neurons`)."""

    score: Literal["sensitivity", "activation", "learned"] = Field(
        "sensitivity",
        description="How neurons are ranked: by what removing them is expected to cost, by the size of their "
        "output, or (learned) by sensitivity at first, and then by what backbone and chosen neurons still "
        "lack on the domain's text.",
    )
    own_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Weight of the domain's own scores; the mean of all domains has the rest.",
    )
    batches: Positive = Field(8, description="Batches of training text of each domain that are read.")
    batch_size: Positive = Field(4, description="Sequences in a batch.")
    steps: Positive | None = Field(
        None,
        description=f"With score: learned, batches of training text of each domain from which the choice is "
        f"learned, one for each step. By default {STEPS}.",
    )
    lr: float | None = Field(
        None,
        gt=0,
        le=100,
        description="With score: learned, how far all steps together can take the scores of neurons down the "
        f"slope of the distillation loss, in standard deviations of the first scores. By default {LR:g}.",
    )

    @model_validator(mode="after")
    def _only_what_learns_has_steps(self) -> RestoreOptions:
        given = [name for name in ("steps", "lr") if getattr(self, name) is not None]
        if given and self.score != "learned":
            raise ValueError(
                f"{' and '.join(given)}: nothing is learned with score: {self.score}; set score: learned, or "
                f"leave {' and '.join(given)} out"
            )
        return self

    @property
    def learning_steps(self) -> int:
        """Steps of each domain; 0: the choice is not learned."""
        return 0 if self.score != "learned" else self.steps or STEPS


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
        from ..training.choosing import probe_steps
        from ..training.probe import seconds_of

        learning, short = _learning(options), options
        more = 0.0
        if learning is not None:
            each = probe_steps(context, replace(learning, steps=probe.steps)) / probe.steps
            more, short = (learning.steps - 1) * each, options.model_copy(update={"steps": 1})
        return more + seconds_of(lambda: self.run(context, short, None))  # there is no part of it to time

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
            score, size = options.score, options.batch_size
            chosen = choose_by_domain(
                context, score, options.own_share, options.batches, size, _learning(options)
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


def _learning(options: RestoreOptions) -> Learning | None:
    """How the choice is learned, on text that the first scores are not from; None: it is not."""
    from ..training.choosing import Learning

    steps = options.learning_steps
    if not steps:
        return None
    return Learning(steps, options.lr or LR, options.own_share, options.batches, options.batch_size)
