"""recipe -> stages -> run folder. The one way through."""

from __future__ import annotations

import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from ..artefact.digests import backbone_digest
from ..checkpoint.spec import ModelSpec
from ..data.domains import resolve_domains
from ..errors import IntegrityError, KoffkitError, UsageError
from ..hub import locate
from ..interrupts import interruptible
from ..progress import Progress, Silent
from ..recipe.load import LoadedRecipe
from ..recipe.plan import budget_of, check_layers
from ..recipe.schema import Recipe
from ..recipe.stages import KINDS
from ..run.folder import FORMAT, RunFolder
from ..training.build import build_context
from ..training.checkpoint import load_latest
from ..training.context import Context
from .stage import StageKind

PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors")


def run_recipe(
    loaded: LoadedRecipe, output: Path, *, resume: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Run every stage of a recipe into the folder `output`; returns the final `run.json`.

    Args:
        resume: continue a run that was interrupted; the result is bit-identical to an uninterrupted one on
            CPU.

    Raises:
        UsageError: the folder holds something else, or a run of another recipe.
        Interrupted: SIGINT; everything up to the last step is saved.
    """
    return _carry_out(loaded, output, None, resume, progress or Silent())


def learn_memory(
    loaded: LoadedRecipe,
    backbone: Path,
    output: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`run_recipe` without its first half: memories for a backbone that is sliced already, taught by the
    unpruned base.

    Args:
        loaded: a recipe with stages from `recover` on; see `koffkit.memories.recipe`.

    Raises:
        UsageError: the folder holds something else, or a run of another recipe.
        Interrupted: SIGINT; everything up to the last step is saved.
    """
    return _carry_out(loaded, output, backbone, resume, progress or Silent())


def _carry_out(
    loaded: LoadedRecipe, output: Path, backbone: Path | None, resume: bool, progress: Progress
) -> dict[str, Any]:
    run = RunFolder(output)
    base = ModelSpec.open(locate(loaded.recipe.base.model, loaded.root, revision=loaded.recipe.base.revision))
    base.reader()  # transformers loads a checkpoint with missing tensors without a word
    fresh = not run.exists
    state = _open_run(run, loaded, base, backbone, resume)
    if state["state"] == "finished":
        progress.message(f"{output}: already finished.")
        return state
    try:
        _check_stages(loaded, base)
        loaded = resolve_domains(loaded, run, base, progress)
        state["recipe"] = loaded.recipe.model_dump(mode="json")
        context = build_context(loaded, run, base, progress, backbone)
    except KoffkitError:
        if fresh:  # nothing was learned: leave nothing that stands in the way of the corrected recipe
            shutil.rmtree(run.path)
        raise
    try:
        with interruptible(at_once=False) as context.stop:
            _run_stages(context, state)
    finally:
        context.accelerator.end_training()
    finished = run.update(
        state="finished", results=context.results, finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    )
    # Several times the size of the memories, and of no more use.
    shutil.rmtree(run.checkpoints_dir, ignore_errors=True)
    return finished


def _stage_kind(name: str) -> StageKind:
    return cast(StageKind, KINDS[name])


def _check_stages(loaded: LoadedRecipe, base: ModelSpec) -> None:
    """A mistake in a late stage must not cost the hours of the early ones."""
    for stage in loaded.recipe.stages:
        _stage_kind(stage.name).check(stage.options, loaded, base)


def _open_run(
    run: RunFolder, loaded: LoadedRecipe, base: ModelSpec, backbone: Path | None, resume: bool
) -> dict[str, Any]:
    sliced = None if backbone is None else backbone_digest(backbone)
    if run.exists:
        state = run.read()
        if not resume:
            raise UsageError(
                f"{run.path}: there is a run already ({state['state']}); add --resume to continue it, or "
                "choose another --output."
            )
        _require_same_run(run, state, loaded.recipe, base)
        if state.get("backbone") != sliced:
            raise IntegrityError(
                f"{run.path}: cannot resume, the run began with another backbone than {backbone}; remove the "
                "run."
            )
        return state
    if run.path.exists() and any(run.path.iterdir()):
        raise UsageError(f"{run.path}: the folder exists and is not a run; choose another --output.")
    state = _new_state(loaded, base, sliced)
    run.path.mkdir(parents=True, exist_ok=True)
    run.write(state)
    return state


def _require_same_run(run: RunFolder, state: dict[str, Any], recipe: Recipe, base: ModelSpec) -> None:
    """Refuse to continue a run with another recipe or base than it began with."""
    resolved = recipe.model_dump(mode="json")
    asked = _in_present_names(state.get("asked", state["recipe"]), recipe)
    if asked != resolved:
        changed = [key for key in resolved if asked.get(key) != resolved[key]]
        raise UsageError(
            f"{run.path}: cannot resume, the recipe changed in {', '.join(changed)}; use the recipe of "
            "the run, or another --output."
        )
    if state["base"]["digest"] != base.fingerprint:
        raise IntegrityError(
            f"{run.path}: cannot resume, the base at {base.folder} is not the one the run began with."
        )


def _in_present_names(asked: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A resolved recipe as this version writes it: an earlier one may have had other names for its fields."""
    try:
        return type(recipe).model_validate(asked).model_dump(mode="json")
    except ValidationError:
        return asked


def _new_state(loaded: LoadedRecipe, base: ModelSpec, sliced: str | None) -> dict[str, Any]:
    """`run.json` of a run that is about to begin.

    Args:
        sliced: digest of the backbone that memories are learned for, if they are for one.
    """
    recipe = loaded.recipe
    resolved = recipe.model_dump(mode="json")
    return {
        "koffkit": FORMAT,
        "asked": resolved,
        "recipe": resolved,  # with the domains of `auto`, once they are known
        "recipe_path": str(loaded.path),
        "recipe_root": str(loaded.root),
        "versions": {name: version(name) for name in ("koffkit", *PACKAGES)}
        | {"python": platform.python_version()},
        "seed": recipe.seed,
        "base": {
            "model": recipe.base.model,
            "path": str(base.folder),
            "digest": base.fingerprint,
            "config": dict(base.config),
        },
        "budget": budget_of(recipe, base).to_json(),
        "backbone": sliced,
        "memory_layers": check_layers(recipe, base.num_layers),
        "stages": [{"name": stage.name, "state": "pending"} for stage in recipe.stages],
        "state": "running",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "results": {},
    }


def _run_stages(context: Context, state: dict[str, Any]) -> None:
    stages = context.loaded.recipe.stages
    names = [stage.name for stage in stages]
    checkpoint = load_latest(context.run.checkpoints_dir)
    first = 0
    if checkpoint is not None:
        context.run.rewind_metrics(names, checkpoint.stage, checkpoint.step)
        first = names.index(checkpoint.stage)
    elif context.run.metrics_file.exists():
        context.run.metrics_file.unlink()
    if checkpoint is not None and first:  # everything the earlier stages learned is in the checkpoint
        context.restore(checkpoint, state["memory_layers"])
        context.results |= state["results"]
    for place, stage in enumerate(stages[first:], first):
        _note(context, state, place, "running")
        resume = checkpoint if place == first else None
        _stage_kind(stage.name).run(context, stage.options, resume)
        _note(context, state, place, "done")


def _note(context: Context, state: dict[str, Any], place: int, progress: str) -> None:
    """Write into `run.json` how far a stage is, and what is settled by now."""
    state["stages"][place]["state"] = progress
    context.run.write(state | context.learned | {"results": context.results})


__all__ = ["learn_memory", "run_recipe"]
