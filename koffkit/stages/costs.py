"""What a run costs: by real steps before it, by the machine's measured speed, and in the end."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..checkpoint.spec import ModelSpec
from ..data.domains import resolve_domains
from ..devices import device_at_hand
from ..hub import locate
from ..interrupts import interruptible
from ..parallel import ranks
from ..planning.forecast import Forecast, disk_bytes, forecast_of, keep_probe, known_probe
from ..planning.machine import measured_machine
from ..planning.plan import make_plan
from ..planning.processes import shared_run
from ..progress import Progress
from ..recipe.load import LoadedRecipe
from ..recipe.stages import KINDS
from ..run.folder import RunFolder
from ..run.state import RunCosts, RunState
from ..storage.files import make_folder
from ..training.build import build_context
from ..training.context import Context
from ..training.precision import multiplying
from ..training.probe import Probe
from ..training.profile import peak_memory
from ..training.teaching import open_cache
from .stage import StageKind

if TYPE_CHECKING:
    from ..planning.forecast import Tokens

ANSWER = "stopping; nothing was written"


def probe_recipe(loaded: LoadedRecipe, steps: int, device: str | None, progress: Progress) -> Forecast:
    """Time real steps of every training stage, and a batch of `evaluate`, without writing a run. What is
    found is remembered for the run that follows.

    Args:
        loaded: the recipe. steps: of every training stage. device: as for a run. progress: where to report.

    Raises:
        KoffkitError: what a run would be refused for.
    """
    recipe = loaded.recipe
    base = ModelSpec.open(
        locate(recipe.base.model, loaded.root, revision=recipe.base.revision, progress=progress)
    )
    distill = recipe.distill.model_copy(update={"cache_dir": None})
    train = recipe.train.model_copy(update={"trackers": []})
    apart = replace(loaded, recipe=recipe.model_copy(update={"distill": distill, "train": train}))
    with tempfile.TemporaryDirectory(prefix="koffkit-probe-") as folder:
        run = RunFolder(Path(folder) / "run")
        make_folder(run.path)
        apart = resolve_domains(apart, run, base, progress)
        context = build_context(apart, run, base, progress, device=device)
        context.cache = open_cache(context, "")
        precision = recipe.train.float32_matmul_precision
        with interruptible(at_once=True, answer=ANSWER) as context.stop, multiplying(precision):
            found = _probed(context, base, steps)
    keep_probe(recipe, device_at_hand(device), found)
    return found


def _probed(context: Context, base: ModelSpec, steps: int) -> Forecast:
    recipe = context.loaded.recipe
    probe, seconds = Probe(steps, _tokens(context)), dict[str, float | None]()
    for stage in recipe.stages:
        kind = cast(StageKind, KINDS[stage.name])
        context.progress.message(f"timing stage {stage.name}")
        seconds[stage.name] = kind.probe(context, stage.options, probe)
        if kind.learns_masks and context.masks is None:
            context.project_masks()
    plan = make_plan(recipe, base)
    return Forecast(
        basis="probe",
        seconds=seconds,
        peak_memory=peak_memory(context.accelerator.device) + probe.later,
        disk=disk_bytes(recipe, base, plan, probe.tokens),
    )


def foreseen(context: Context, base: ModelSpec, device: str | None, *, shard: bool) -> RunCosts | None:
    """What a run is expected to cost: as real steps of its recipe said, or by the machine's measured speed,
    then also for each of several processes. None where memories are learned for a sliced backbone.

    Args:
        context: before the first stage. base: the unpruned model. device: that the user named.
        shard: the processes divide the frozen weights.
    """
    if context.teacher is not None:  # memories for a sliced backbone
        return None
    recipe, at_hand, several = context.loaded.recipe, device_at_hand(device), ranks.size() > 1
    forecast = None if several else known_probe(recipe, at_hand)
    if forecast is None:
        machine, tokens = measured_machine(at_hand, str(context.accelerator.device)), _tokens(context)
        forecast = forecast_of(recipe, base, make_plan(recipe, base), machine, tokens)
        if several:
            each = shared_run(recipe, base, machine, tokens, ranks.size(), shard=shard)
            forecast = replace(forecast, seconds=each.seconds, peak_memory=each.peak_memory)
    return RunCosts.model_validate(asdict(forecast))


def spent(context: Context, state: RunState) -> RunCosts:
    """What a run did cost; its folder still has its checkpoints and its teacher cache."""
    folders = [context.run.path]
    if context.cache is not None and context.run.path not in context.cache.folder.parents:
        folders.append(context.cache.folder)
    return RunCosts(
        basis="run",
        seconds={stage.name: stage.seconds for stage in state.stages},
        peak_memory=peak_memory(context.accelerator.device),
        disk=sum(_taken(folder) for folder in folders),
    )


def _taken(folder: Path) -> int:
    """Bytes that a folder's files take on the disk; holes take none."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _tokens(context: Context) -> Tokens:
    corpus = context.corpus
    tokens: dict[str, int | None] = {name: len(stream) for name, stream in corpus.train.items()}
    return tokens if corpus.retention is None else tokens | {"retention": len(corpus.retention)}
