"""`koffkit compress`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..parallel import place
from ..parallel.sharding import asked_by_accelerate
from ..report.costs import costs_table
from ..report.verdict import verdict_of
from .console import (
    ARGUMENTS,
    RichProgress,
    emit,
    json_option,
    print_results,
    print_verdict,
    quiet_libraries,
    stdout,
)
from .place import device_option

if TYPE_CHECKING:
    from ..planning.plan import Plan
    from ..recipe.schema import Recipe
    from ..run.state import RunState


@click.command("compress")
@click.argument("recipe")
@click.option("--output", type=click.Path(path_type=Path), help="Run folder.  [default: runs/NAME]")
@click.option(
    "--set", "overrides", multiple=True, metavar="a.b=VALUE", help="Change a field of the recipe; repeatable."
)
@click.option("--resume", is_flag=True, help="Continue an interrupted run.")
@click.option(
    "--num-processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes on this machine that share each step, one a GPU.",
)
@click.option(
    "--shard", is_flag=True, help="Divide the frozen weights among the processes (FSDP2), to save memory."
)
@click.option("--dry-run", is_flag=True, help="Only state the plan: exact parameters, bytes, memory, time.")
@click.option(
    "--probe",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="With --dry-run: time N real steps of every training stage, for a plan that comes true.",
)
@device_option
@json_option
def command(
    recipe: str,
    output: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    num_processes: int,
    shard: bool,
    dry_run: bool,
    probe: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Learn masks and memories as RECIPE says: a file, or the name of a shipped recipe."""
    from ..devices import require_device
    from ..planning.plan import plan_of
    from ..recipe.load import load_recipe
    from ..storage.files import require_place
    from .checks import check_disk, check_recipe
    from .dry_run import dry_run_of

    loaded = load_recipe(recipe, overrides)
    run = output or Path("runs") / loaded.recipe.name
    shard = shard or asked_by_accelerate()
    if dry_run:
        there = max(num_processes, place.num_processes())
        _require_several(shard, there)
        if place.rank() == 0:
            dry_run_of(loaded, run, as_json, device, probe, processes=there, shard=shard)
        return
    if probe is not None:
        raise UsageError("--probe: it is a part of the plan; add --dry-run.")
    if not resume:
        check_recipe(loaded)
    require_place(run)
    _start_anew(num_processes, shard)
    quiet_libraries()
    require_device(device)
    from ..stages.engine import run_recipe

    progress = RichProgress()
    stated = plan_of(loaded, progress=progress)
    check_disk(stated, run)
    _announce(progress, loaded.recipe, stated.warnings)
    with progress.live():
        state = run_recipe(loaded, run, resume=resume, device=device, progress=progress, shard=shard)
    if place.rank() == 0:
        _tell(run, state, stated, as_json)


def _tell(run: Path, state: RunState, stated: Plan, as_json: bool) -> None:
    """What came of it."""
    verdict = verdict_of(state.results).to_json()
    if as_json:
        shown: dict[str, Any] = {"run": str(run), "state": state.state, "plan": stated.to_json()}
        costs = {"foreseen": state.foreseen, "spent": state.spent}
        shown["costs"] = {name: None if one is None else one.to_json() for name, one in costs.items()}
        emit({**shown, "results": state.results, "verdict": verdict})
    else:
        _print_results(run, state, verdict)


def _announce(progress: RichProgress, recipe: Recipe, warnings: Iterable[str]) -> None:
    progress.expect(steps_of(recipe))
    for warning in warnings:
        progress.warn(warning)
    if place.left_alone():
        progress.warn(
            "accelerate launch started one process; for several on a CPU use --num-processes N, torchrun, or "
            "accelerate launch --multi_gpu."
        )


def _start_anew(num_processes: int, shard: bool) -> None:
    """Start this command anew in several processes and end as they do, unless this is one of them already.

    Raises:
        UsageError: the options contradict the launcher or each other.
    """
    from ..parallel.launch import launch

    there = place.num_processes()
    if num_processes > 1 and there == 1:
        context = click.get_current_context()
        context.exit(launch(num_processes, context.find_root().meta[ARGUMENTS]))
    if num_processes not in (1, there):
        raise UsageError(
            f"--num-processes {num_processes}: the launcher started {there}; leave the option out."
        )
    _require_several(shard, there)


def _require_several(shard: bool, processes: int) -> None:
    if shard and processes == 1:
        raise UsageError("--shard divides the model among processes; add --num-processes, or leave it out.")


def _print_results(run: Path, state: RunState, verdict: dict[str, Any]) -> None:
    print_results(state.results)
    print_verdict(verdict)
    if state.foreseen is not None and state.spent is not None:
        stdout().print(costs_table(state.foreseen, state.spent))
    stdout().print(f"{run}: finished. Next: koffkit export {run} --format hf", markup=False)


def steps_of(recipe: Recipe) -> dict[str, int]:
    """Training steps of every stage that has some."""
    training = {stage.name: getattr(stage.options, "max_steps", 0) for stage in recipe.stages}
    return {name: steps for name, steps in training.items() if steps}
