"""Running a recipe: recipe -> stages -> run folder."""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, cast

from ..checkpoint.spec import ModelSpec
from ..data.domains import resolve_domains
from ..errors import DataError, KoffkitError
from ..hub import locate
from ..interrupts import interruptible
from ..parallel import lean, ranks
from ..planning.shares import require_divisible
from ..progress import Progress, Silent
from ..recipe.load import LoadedRecipe
from ..recipe.stages import KINDS
from ..run.folder import RunFolder
from ..run.state import RunState
from ..storage.clock import timestamp
from ..storage.lock import writing_in
from ..training.build import build_context
from ..training.checkpoint import load_latest
from ..training.context import Context
from ..training.precision import multiplying
from ..training.teaching import open_cache
from .costs import foreseen, spent
from .opening import clear, led_run, open_run
from .stage import StageKind

ANSWER = "stopping after this step; again to stop now"


def run_recipe(
    loaded: LoadedRecipe,
    output: Path,
    *,
    resume: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
    shared: Path | None = None,
    shard: bool = False,
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
        shard: divide the frozen weights among the processes of the run.

    Returns:
        The final state (`run.json`).

    Raises:
        UsageError: the folder holds something else, or a run of another recipe.
        ResourceError: the device is not available.
        Interrupted: by SIGINT; everything up to the last step is saved.
    """
    with ranks.joined(device), writing_in(output) if ranks.leads() else nullcontext():
        progress = progress or Silent()
        return _carry_out(loaded, output, None, resume, device, progress, shared=shared, shard=shard)


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
    shard: bool = False,
) -> RunState:
    run = RunFolder(output)
    progress = progress if ranks.leads() else Silent()
    with ranks.leader_first():  # which may download the base
        base = _base(loaded, progress)
        fresh = ranks.leads() and not run.exists
        opened = open_run(run, loaded, base, backbone, resume, progress) if ranks.leads() else None
        state = opened or led_run(run)
    ranks.wait()  # until all have read it
    if state.is_finished:
        progress.message(f"{output}: already finished.")
        if ranks.leads():
            shutil.rmtree(run.checkpoints_dir, ignore_errors=True)  # of a command killed at its end
        return state
    try:
        _check_stages(loaded, base, shard)
        with ranks.leader_first():
            loaded = resolve_domains(loaded, run, base, progress)
        state = state.evolve(recipe=loaded.recipe.model_dump(mode="json"))
        context = build_context(loaded, run, base, progress, backbone, device, masks, shard)
        context.shared = shared
        context.cache = open_cache(context, state.base.fingerprint)
        if ranks.leads():
            state = state.evolve(foreseen=state.foreseen or foreseen(context, base, device, shard=shard))
    except KoffkitError as error:
        if fresh:  # nothing was learned: leave nothing that blocks the corrected recipe
            clear(run, keep_tokens=not isinstance(error, DataError))
        raise
    try:
        stopping = interruptible(at_once=False, answer=ANSWER if ranks.leads() else "")
        with stopping as stop, multiplying(loaded.recipe.train.float32_matmul_precision):
            context.stop = ranks.agreed(stop)
            state = _run_stages(context, state)
    finally:
        context.accelerator.end_training()
    return _finish(context, state) if ranks.leads() else state


def _finish(context: Context, state: RunState) -> RunState:
    """Note that a run is finished, and delete what only `--resume` needs."""
    run = context.run
    repair = context.learned.get("repair") or {}
    if repair.get("trained"):
        run.repair_file.unlink(missing_ok=True)  # what was trained takes its place
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


def _base(loaded: LoadedRecipe, progress: Progress) -> ModelSpec:
    """The unpruned base, complete on this machine."""
    named = loaded.recipe.base
    base = ModelSpec.open(locate(named.model, loaded.root, revision=named.revision, progress=progress))
    base.reader()  # transformers would silently load a checkpoint with missing tensors
    return base


def _stage_kind(name: str) -> StageKind:
    return cast(StageKind, KINDS[name])


def _check_stages(loaded: LoadedRecipe, base: ModelSpec, shard: bool) -> None:
    """Check the options of all stages before the first one starts."""
    require_divisible(loaded.recipe, ranks.size(), shard=shard)
    for stage in loaded.recipe.stages:
        _stage_kind(stage.name).check(stage.options, loaded, base)


def _run_stages(context: Context, state: RunState) -> RunState:
    stages = context.loaded.recipe.stages
    names = [stage.name for stage in stages]
    checkpoint = load_latest(context.run.checkpoints_dir, context.progress.warn)
    first = 0
    if checkpoint is not None:
        context.run.rewind_metrics(names, checkpoint.stage, checkpoint.step)
        first = names.index(checkpoint.stage)
    elif ranks.leads():
        context.run.metrics_file.unlink(missing_ok=True)
    if checkpoint is not None and first:  # the checkpoint holds everything that earlier stages learned
        repair = None if state.repair is None else state.repair.model_dump(mode="json", exclude_none=True)
        context.restore(checkpoint, state.memory_layers, repair)
        context.results |= state.results
    for place, stage in enumerate(stages[first:], first):
        state = _note(context, state, stage.name, "running")
        resume, begin = checkpoint if place == first else None, time.monotonic()
        _stage_kind(stage.name).run(context, stage.options, resume)
        lean.give_back()
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
