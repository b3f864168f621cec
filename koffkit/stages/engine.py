"""recipe -> stages -> run folder. The one way through."""

from __future__ import annotations

import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..artefact.digests import backbone_digest
from ..checkpoint.spec import ModelSpec
from ..data.domains import resolve_domains
from ..errors import IntegrityError, KoffkitError, UsageError
from ..hub import locate
from ..interrupts import interruptible
from ..progress import Progress, Silent
from ..recipe.load import LoadedRecipe
from ..recipe.plan import budget_of, check_layers
from ..run.folder import FORMAT, RunFolder
from ..storage.files import make_folder
from ..storage.lock import is_own, writing_in
from ..storage.publish import discard
from ..training.build import build_context
from ..training.checkpoint import load_latest, restore
from ..training.context import Context, stage_options

ANSWER = "stopping after this step; again to stop now"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors")


def compress(
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
    with writing_in(output):
        return _carry_out(loaded, output, None, resume, progress or Silent())


def learn_memory(
    loaded: LoadedRecipe,
    backbone: Path,
    output: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`compress` without its first half: memories for a backbone that is sliced already, taught by the
    unpruned base.

    Args:
        loaded: a recipe with stages from `recover` on; see `koffkit.memories.recipe`.

    Raises:
        UsageError: the folder holds something else, or a run of another recipe.
        Interrupted: SIGINT; everything up to the last step is saved.
    """
    with writing_in(output):
        return _carry_out(loaded, output, backbone, resume, progress or Silent())


def _carry_out(
    loaded: LoadedRecipe, output: Path, backbone: Path | None, resume: bool, progress: Progress
) -> dict[str, Any]:
    run = RunFolder(output)
    base = ModelSpec.open(locate(loaded.recipe.base.model, loaded.root, revision=loaded.recipe.base.revision))
    base.reader()  # transformers loads a checkpoint with missing tensors without a word
    _check_stages(loaded, base)
    fresh = not run.exists
    state = _open_run(run, loaded, base, backbone, resume)
    if state["state"] == "finished":
        progress.message(f"{output}: already finished.")
        shutil.rmtree(run.checkpoints_dir, ignore_errors=True)  # killed between finishing and this
        return state
    try:
        loaded = resolve_domains(loaded, run, base, progress)
        state["recipe"] = loaded.recipe.model_dump(mode="json")
        context = build_context(loaded, run, base, progress, backbone)
    except KoffkitError:
        if fresh:  # nothing was learned: leave nothing that stands in the way of the corrected recipe
            discard(run.path)
        raise
    try:
        with interruptible(at_once=False, answer=ANSWER) as context.stop:
            _run_stages(context, state)
    finally:
        context.accelerator.end_training()
    finished = run.update(
        state="finished", results=context.results, finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    )
    # Several times the size of the memories, and of no more use.
    shutil.rmtree(run.checkpoints_dir, ignore_errors=True)
    return finished


def _check_stages(loaded: LoadedRecipe, base: ModelSpec) -> None:
    """A typing error in a late stage must not cost the hours of the early ones."""
    from .route import check_route

    for stage in loaded.recipe.stages:
        if stage.route is not None:
            check_route(stage.route, loaded.root, base.num_layers)


def _open_run(
    run: RunFolder, loaded: LoadedRecipe, base: ModelSpec, backbone: Path | None, resume: bool
) -> dict[str, Any]:
    recipe = loaded.recipe
    resolved = recipe.model_dump(mode="json")
    sliced = None if backbone is None else backbone_digest(backbone)
    if run.exists:
        state = run.read()
        if not resume:
            raise UsageError(
                f"{run.path}: there is a run already ({state['state']}); add --resume to continue it, or "
                "choose another --output."
            )
        asked = state.get("asked", state["recipe"])
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
        if state.get("backbone") != sliced:
            raise IntegrityError(
                f"{run.path}: cannot resume, the run began with another backbone than {backbone}; remove the "
                "run."
            )
        return state
    if run.path.is_dir() and not all(is_own(path) for path in run.path.iterdir()):
        raise UsageError(f"{run.path}: the folder exists and is not a run; choose another --output.")
    budget = budget_of(recipe, base)
    state = {
        "koffkit": FORMAT,
        "asked": resolved,
        "recipe": resolved,  # with the domains that were found, once they are
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
        "budget": budget.to_json(),
        "backbone": sliced,
        "memory_layers": check_layers(recipe, base.num_layers),
        "stages": [{"name": stage.name, "state": "pending"} for stage in recipe.stages],
        "state": "running",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "results": {},
    }
    make_folder(run.path)
    run.write(state)
    return state


def _run_stages(context: Context, state: dict[str, Any]) -> None:
    from ..training.loop import DistillationLoop
    from .outputs import keep_layers, set_masks
    from .registry import RUNNERS

    names = [stage["name"] for stage in state["stages"]]
    checkpoint = load_latest(context.run.checkpoints_dir, context.progress.warn)
    if checkpoint is not None:
        context.run.rewind_metrics(names, checkpoint.stage, checkpoint.step)
    elif context.run.metrics_file.exists():
        context.run.metrics_file.unlink()
    for place, stage in enumerate(context.loaded.recipe.stages):
        resume = checkpoint if checkpoint is not None and checkpoint.stage == stage.name else None
        if checkpoint is not None and names.index(checkpoint.stage) > place:
            continue  # everything this stage learned is in the later stage's checkpoint
        if (
            checkpoint is not None
            and stage.name != "learn_masks"
            and context.student.gates is not None
            and context.masks is None
        ):
            loop = DistillationLoop(
                context, checkpoint.stage, stage_options(context, checkpoint.stage), train_gates=False
            )
            restore(checkpoint, loop.trainables(), context.run.checkpoints_dir)
            set_masks(context)
            keep_layers(context, state["memory_layers"])
        state["stages"][place]["state"] = "running"
        context.run.write(state | context.learned)
        RUNNERS[stage.name].run(context, resume)
        state["stages"][place]["state"] = "done"
        context.run.write(state | context.learned)


__all__ = ["compress", "learn_memory"]
