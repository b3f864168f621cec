"""Stage `select_masks`: masks from one look at the text, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .. import plugins
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
        _selector(options).check(loaded.recipe.mask)

    def probe(self, context: Context, options: SelectMasksOptions, probe: Probe) -> float:
        from ..training.probe import seconds_of

        return seconds_of(lambda: self.run(context, options, None))  # there is no part of it to time

    def run(self, context: Context, options: SelectMasksOptions, resume: Checkpoint | None) -> None:
        from ..training.checkpoint import Checkpoint, save_checkpoint
        from ..training.parity import check_first_masks
        from .outputs import save_memories

        if resume is None:
            _score(context, options)
            check_first_masks(context)
            names = [stage.name for stage in context.loaded.recipe.stages]
            state = Checkpoint(self.name, 0, context.tensors(), {}, {})
            save_checkpoint(context.run.checkpoints_dir, names.index(self.name), state)
        else:
            context.load(resume)
        context.set_masks()
        save_memories(context)


def _selector(options: SelectMasksOptions) -> Selector:
    selector: Selector = plugins.load(plugins.SELECTORS, options.selector, "stages.select_masks.selector")
    return selector


def _score(context: Context, options: SelectMasksOptions) -> None:
    """Leave the selector's scores in the student's gates."""
    import torch

    from ..training.calibration import calibration, calibration_batches
    from ..training.shared import computed_once

    sources: list[str | None] = [] if options.text == "retention" else list(context.corpus.domains)
    if options.text != "domains" and context.corpus.retention is not None:
        sources.append(None)
    batches = calibration_batches(context, options.batches, options.batch_size, sources)
    selector = _selector(options)
    settings = options.model_dump() | ({} if selector.any_sparsity else {"budget": context.budget.to_json()})

    def compute() -> dict[str, torch.Tensor]:
        return dict(selector.scores(calibration(context, SelectMasks.name, batches), context.budget))

    scores = computed_once(context, SelectMasks.name, settings, compute)
    gates = context.student.gates
    assert gates is not None
    with torch.no_grad():
        for name, values in scores.items():
            gates.log_alpha[name].copy_(values)
