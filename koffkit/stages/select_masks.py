"""Stage `select_masks`: masks from one look at the text, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .. import plugins
from ..errors import UsageError
from ..recipe.learning import Learned
from ..strict import Positive, StrictModel
from .stage import StageKind

if TYPE_CHECKING:
    from ..checkpoint.spec import ModelSpec
    from ..recipe.load import LoadedRecipe
    from ..recipe.schema import Recipe
    from ..selectors import Selector
    from ..training.checkpoint import Checkpoint
    from ..training.context import Context
    from ..training.probe import Probe

    SelectorName = str
else:  # whatever is installed
    SelectorName = Literal[tuple(plugins.names(plugins.SELECTORS))]

WHAT_IS_READ = {"selector", "batches", "batch_size", "text"}


class SelectMasksOptions(StrictModel):
    """Masks from a one-shot selector, instead of learned ones."""

    selector: SelectorName = Field(
        "activation",
        description="magnitude (weights), activation (Wanda), taylor (LLM-Pruner), flap, depth (ShortGPT) or "
        "fisher (the KL to the unpruned model, to second order), or sensitivity (the same, steadier).",
    )
    batches: Positive = Field(8, description="Batches of each domain, and of retention text, to look at.")
    batch_size: Positive = Field(2, description="Sequences in a batch.")
    text: Literal["all", "domains", "retention"] = Field(
        "all", description="Which text to look at: of every domain, retention text, or both."
    )
    for_memories: bool = Field(
        False,
        description="Count on the neurons that stage restore gives back: what few domains need is cheap to "
        "remove. For selectors fisher and sensitivity.",
    )


class SelectMasks(StageKind):
    """Scores units with a selector and projects the scores onto the exact budget, as `learn_masks` does."""

    name = "select_masks"
    options = SelectMasksOptions
    learns_masks = True

    def check_recipe(self, options: SelectMasksOptions, recipe: Recipe) -> None:
        if options.text == "retention" and recipe.retention is None:
            raise ValueError(
                "stages.select_masks.text: retention, but the recipe has no retention text; add it, or use "
                "text: domains"
            )
        if options.for_memories and (recipe.memory.neurons is None or options.text == "retention"):
            missing = (
                "memory.neurons is null"
                if recipe.memory.neurons is None
                else "the text is retention text alone"
            )
            raise ValueError(
                f"stages.select_masks.for_memories: true, but {missing}, so there is nothing to count on; "
                "change that, or take for_memories out"
            )
        if isinstance(recipe.memory.layers, Learned):
            raise ValueError(
                "memory.layers.learned_bytes chooses by the memories of stage learn_masks, which this recipe "
                "does not have; name the layers"
            )

    def check(self, options: SelectMasksOptions, loaded: LoadedRecipe, base: ModelSpec) -> None:
        """Refuse a selector that does not go with the recipe's masks.

        Raises:
            UsageError: by the selector.
        """
        selector = _selector(options.selector)
        selector.check(loaded.recipe.mask)
        if options.for_memories and not selector.additive:
            known = [name for name in plugins.names(plugins.SELECTORS) if _selector(name).additive]
            raise UsageError(
                f"stages.select_masks.selector: {options.selector} does not estimate a loss, so its scores "
                f"of several domains cannot be weighed against each other (for_memories: true); choose "
                f"{' or '.join(known)}, or take for_memories out."
            )

    def probe(self, context: Context, options: SelectMasksOptions, probe: Probe) -> float:
        from ..training.probe import seconds_of

        return seconds_of(lambda: self.run(context, options, None))  # there is no part of it to time

    def run(self, context: Context, options: SelectMasksOptions, resume: Checkpoint | None) -> None:
        from ..training.checkpoint import Checkpoint, save_checkpoint
        from ..training.parity import check_first_masks
        from ..training.selecting import select
        from .outputs import save_memories

        if resume is None:
            own_share = _own_share(context.loaded.recipe) if options.for_memories else None
            select(context, _selector(options.selector), options.model_dump(include=WHAT_IS_READ), own_share)
            check_first_masks(context)
            names = [stage.name for stage in context.loaded.recipe.stages]
            state = Checkpoint(self.name, 0, context.tensors(), {}, {})
            save_checkpoint(context.run.checkpoints_dir, names.index(self.name), state)
        else:
            context.load(resume)
        context.set_masks()
        save_memories(context)


def _selector(name: str) -> Selector:
    selector: Selector = plugins.load(plugins.SELECTORS, name, "stages.select_masks.selector")
    return selector


def _own_share(recipe: Recipe) -> float:
    """The weight of a domain's own scores in stage `restore`, whose choice is counted on."""
    share: float = next(stage.options.own_share for stage in recipe.stages if stage.name == "restore")
    return share
