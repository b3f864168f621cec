"""Which shipped recipes fit an accelerator, by the plan's own estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.spec import ModelSpec
from ..hub import locate
from ..recipe.load import LoadedRecipe, load_recipe
from ..recipe.training import Training
from .cluster import MARGIN
from .plan import make_plan
from .shapes import SHAPES


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A recipe on an accelerator.

    Args:
        base: its base. peak_memory_bytes: by the plan, with the settings.
        fits: whether it does. settings: for `--set`, that it needs to fit, or that come closest to it; they
            keep the tokens of a step.
    """

    base: str
    peak_memory_bytes: int
    fits: bool
    settings: list[str]


def preset(path: Path, memory: int) -> Preset | None:
    """How a shipped recipe fits: as it is, or with smaller batches that are accumulated.

    Args:
        path: of the recipe. memory: bytes of the accelerator.

    Returns:
        None: the sizes of its base are not known here.
    """
    loaded = load_recipe(path)
    spec = _spec(loaded)
    if spec is None:
        return None
    for settings in _smaller(loaded):
        changed = load_recipe(path, settings) if settings else loaded
        peak = make_plan(changed.recipe, spec).peak_memory_bytes
        found = Preset(
            base=loaded.recipe.base.model,
            peak_memory_bytes=peak,
            fits=peak <= MARGIN * memory,
            settings=list(settings),
        )
        if found.fits:
            break
    return found


def _spec(loaded: LoadedRecipe) -> ModelSpec | None:
    base = loaded.recipe.base.model
    if base in SHAPES:
        return ModelSpec(config=SHAPES[base])
    return ModelSpec.open(locate(base, loaded.root)) if base.startswith("embedded:") else None


def _smaller(loaded: LoadedRecipe) -> list[Sequence[str]]:
    """Settings to try, in this order: none, gradient checkpointing, and with it one sequence at a time; then
    the same with one memory at a time."""
    recipe, checkpointing = loaded.recipe, ["train.gradient_checkpointing=true"]
    ways: list[Sequence[str]] = [[]]
    if not recipe.train.gradient_checkpointing:
        ways.append(checkpointing)
    stages = [stage for stage in recipe.stages if isinstance(stage.options, Training)]
    sizes = {stage.options.batch_size for stage in stages}
    if len(sizes) == 1 and sizes != {1}:
        accumulated = recipe.train.gradient_accumulation * sizes.pop()
        one = [f"stages.{stage.name}.batch_size=1" for stage in stages]
        ways.append([*ways[-1], *one, f"train.gradient_accumulation={accumulated}"])
    if not recipe.train.page_memories:
        ways += [[*way, "train.page_memories=true"] for way in ways]
    return ways
