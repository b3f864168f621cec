"""Running a recipe: recipe -> stages -> run folder."""

from __future__ import annotations

import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ValidationError

from ..artefact.digests import backbone_digest
from ..checkpoint.spec import ModelSpec
from ..data.domains import resolve_domains
from ..errors import DataError, IntegrityError, KoffkitError, UsageError
from ..hub import locate
from ..interrupts import interruptible
from ..planning.plan import budget_of, check_layers
from ..progress import Progress, Silent
from ..recipe.load import LoadedRecipe
from ..recipe.schema import Recipe
from ..recipe.stages import KINDS
from ..run.folder import RunFolder
from ..run.state import FORMAT, RunBase, RunBudget, RunState, StageState
from ..storage.clock import timestamp
from ..storage.files import make_folder
from ..storage.lock import is_own, writing_in
from ..storage.publish import discard
from ..training.build import build_context
from ..training.checkpoint import load_latest
from ..training.context import Context
from ..training.teaching import open_cache
from .costs import foreseen, spent
from .stage import StageKind

ANSWER = "stopping after this step; again to stop now"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors")


def run_recipe(
    loaded: LoadedRecipe,
    output: Path,
    *,
    resume: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
    shared: Path | None = None,
) -> RunState:
    """Run every stage of a recipe.

    Args:
        loaded: the recipe.
        output: the run folder.
        resume: continue a run that was interrupted; the result is bit-identical to an uninterrupted one on
            CPU.
        device: where to train; None: the accelerator of the machine, or the CPU without one.
        progress: where to report; by default nowhere.
        shared: a folder for what several runs of a study compute alike; None: every run does all itself.

    Returns:
        The final state (`run.json`).

    Raises:
        UsageError: the folder holds something else, or a run of another recipe.
        ResourceError: the device is not available.
        Interrupted: by SIGINT; everything up to the last step is saved.
    """
    with writing_in(output):
        return _carry_out(loaded, output, None, resume, device, progress or Silent(), shared=shared)


def learn_memory(
    loaded: LoadedRecipe,
    backbone: Path,
    output: Path,
    *,
    masks: Path | None = None,
    resume: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
) -> RunState:
    """Learn memories for a backbone that is sliced already, taught by the unpruned base; otherwise like
    `run_recipe`.

    Args:
        loaded: a recipe whose masks are given; see `koffkit.memories.recipe`.
        masks: what the backbone was sliced by; memories that give neurons back need it.

    Raises:
        UsageError: the folder holds something else, or a run of another recipe.
        Interrupted: by SIGINT; everything up to the last step is saved.
    """
    with writing_in(output):
        return _carry_out(loaded, output, backbone, resume, device, progress or Silent(), masks)


def _carry_out(
    loaded: LoadedRecipe,
    output: Path,
    backbone: Path | None,
    resume: bool,
    device: str | None,
    progress: Progress,
    masks: Path | None = None,
    shared: Path | None = None,
) -> RunState:
    run = RunFolder(output)
    named = loaded.recipe.base
    base = ModelSpec.open(locate(named.model, loaded.root, revision=named.revision, progress=progress))
    base.reader()  # transformers would silently load a checkpoint with missing tensors
    fresh = not run.exists
    state = _open_run(run, loaded, base, backbone, resume, progress)
    if state.is_finished:
        progress.message(f"{output}: already finished.")
        shutil.rmtree(run.checkpoints_dir, ignore_errors=True)  # of a command killed at its end
        return state
    try:
        _check_stages(loaded, base)
        loaded = resolve_domains(loaded, run, base, progress)
        state = state.evolve(recipe=loaded.recipe.model_dump(mode="json"))
        context = build_context(loaded, run, base, progress, backbone, device, masks)
        context.shared = shared
        context.cache = open_cache(context, state.base.fingerprint)
        state = state.evolve(foreseen=state.foreseen or foreseen(context, base, device))
    except KoffkitError as error:
        if fresh:  # nothing was learned: leave nothing that blocks the corrected recipe
            _clear(run, keep_tokens=not isinstance(error, DataError))
        raise
    try:
        with interruptible(at_once=False, answer=ANSWER) as context.stop:
            state = _run_stages(context, state)
    finally:
        context.accelerator.end_training()
    finished = run.write(
        state.evolve(
            state="finished",
            results=context.results,
            finished=timestamp(),
            files=run.list_files(),
            spent=spent(context, state),
        )
    )
    # Several times the size of the memories, and of no more use.
    shutil.rmtree(run.checkpoints_dir, ignore_errors=True)
    shutil.rmtree(run.teacher_dir, ignore_errors=True)
    return finished


def _clear(run: RunFolder, *, keep_tokens: bool) -> None:
    """Remove a refused run; `keep_tokens` keeps token files, which may have taken hours."""
    if not keep_tokens or not run.data_dir.is_dir():
        discard(run.path)
        return
    for path in sorted(run.path.iterdir(), key=lambda path: path == run.run_file):  # run.json last
        if path != run.data_dir and not is_own(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _stage_kind(name: str) -> StageKind:
    return cast(StageKind, KINDS[name])


def _check_stages(loaded: LoadedRecipe, base: ModelSpec) -> None:
    """Check the options of all stages before the first one starts."""
    for stage in loaded.recipe.stages:
        _stage_kind(stage.name).check(stage.options, loaded, base)


def _open_run(
    run: RunFolder,
    loaded: LoadedRecipe,
    base: ModelSpec,
    backbone: Path | None,
    resume: bool,
    progress: Progress | None = None,
) -> RunState:
    sliced = None if backbone is None else backbone_digest(backbone)
    if run.exists:
        state = run.read()
        if not resume:
            raise UsageError(
                f"{run.path}: there is a run already ({state.state}); add --resume to continue it, or "
                "choose another --output."
            )
        _require_same_run(run, state, loaded.recipe, base, progress)
        if state.backbone != sliced:
            raise IntegrityError(
                f"{run.path}: cannot resume, the run began with another backbone than {backbone}; remove the "
                "run."
            )
        return state
    if run.path.is_dir() and not all(is_own(path) or path == run.data_dir for path in run.path.iterdir()):
        raise UsageError(f"{run.path}: the folder exists and is not a run; choose another --output.")
    make_folder(run.path)
    return run.write(_new_state(loaded, base, sliced, progress))


def _require_same_run(
    run: RunFolder, state: RunState, recipe: Recipe, base: ModelSpec, progress: Progress | None = None
) -> None:
    """Refuse to continue a run with a recipe or base other than its own."""
    resolved = recipe.model_dump(mode="json")
    requested = _in_present_names(state.requested_recipe, recipe)
    if requested != resolved:
        changed = [key for key in resolved if requested.get(key) != resolved[key]]
        raise UsageError(
            f"{run.path}: cannot resume, the recipe changed in {', '.join(changed)}; use the recipe of "
            "the run, or another --output."
        )
    if state.base.fingerprint != base.digest(state.base.digest_kind, progress):
        raise IntegrityError(
            f"{run.path}: cannot resume, the base at {base.folder} is not the one the run began with."
        )


def _in_present_names(requested: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A resolved recipe with the field names of this version; earlier ones had other names for some."""
    try:
        said = {"begin_sequences": False} | requested  # as it was before there was the field
        return type(recipe).model_validate(said).model_dump(mode="json")
    except ValidationError:
        return requested


def _new_state(
    loaded: LoadedRecipe, base: ModelSpec, sliced: str | None, progress: Progress | None
) -> RunState:
    """`run.json` of a run that is about to begin.

    Args:
        sliced: digest of the sliced backbone that memories are learned for; None: there is none yet.
    """
    recipe = loaded.recipe
    resolved = recipe.model_dump(mode="json")
    return RunState(
        koffkit=FORMAT,
        requested_recipe=resolved,
        recipe=resolved,  # with the domains of `auto`, once they are known
        recipe_path=str(loaded.path),
        recipe_root=str(loaded.root),
        versions={name: version(name) for name in ("koffkit", *PACKAGES)}
        | {"python": platform.python_version()},
        seed=recipe.seed,
        base=RunBase(
            model=recipe.base.model,
            path=str(base.folder),
            fingerprint=base.digest(progress=progress),
            digest_kind="full",
            config=dict(base.config),
        ),
        budget=RunBudget.model_validate(budget_of(recipe, base).to_json()),
        backbone=sliced,
        memory_layers=check_layers(recipe, base.num_layers),
        stages=[StageState(name=stage.name, state="pending") for stage in recipe.stages],
        state="running",
        started=timestamp(),
        results={},
    )


def _run_stages(context: Context, state: RunState) -> RunState:
    stages = context.loaded.recipe.stages
    names = [stage.name for stage in stages]
    checkpoint = load_latest(context.run.checkpoints_dir, context.progress.warn)
    first = 0
    if checkpoint is not None:
        context.run.rewind_metrics(names, checkpoint.stage, checkpoint.step)
        first = names.index(checkpoint.stage)
    elif context.run.metrics_file.exists():
        context.run.metrics_file.unlink()
    if checkpoint is not None and first:  # the checkpoint holds everything that earlier stages learned
        repair = None if state.repair is None else state.repair.sha256
        context.restore(checkpoint, state.memory_layers, repair)
        context.results |= state.results
    for place, stage in enumerate(stages[first:], first):
        state = _note(context, state, stage.name, "running")
        resume, begin = checkpoint if place == first else None, time.monotonic()
        _stage_kind(stage.name).run(context, stage.options, resume)
        state = _note(context, state, stage.name, "done", time.monotonic() - begin)
    return state


def _note(
    context: Context,
    state: RunState,
    stage: str,
    progress: Literal["running", "done"],
    seconds: float | None = None,
) -> RunState:
    """Write the progress of a stage, and everything settled so far, into `run.json`."""
    return context.run.write(
        state.with_stage(stage, progress, seconds).evolve(**context.learned, results=context.results)
    )


__all__ = ["learn_memory", "run_recipe"]
