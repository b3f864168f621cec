"""`koffkit compress`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import DataError
from .console import RichProgress, emit, json_option, print_results, quiet_libraries, stdout

if TYPE_CHECKING:
    from ..method.budget import Budget
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
@click.option("--dry-run", is_flag=True, help="Only state the plan: exact parameters, bytes, memory, time.")
@json_option
def command(
    recipe: str, output: Path | None, overrides: tuple[str, ...], resume: bool, dry_run: bool, as_json: bool
) -> None:
    """Learn masks and memories as RECIPE says: a file, or the name of a shipped recipe."""
    from ..planning.plan import plan_of
    from ..recipe.load import load_recipe
    from ..storage.files import require_place
    from .checks import check_disk, check_recipe

    loaded = load_recipe(recipe, overrides)
    if dry_run:
        problem = None
        try:
            check_recipe(loaded)
        except DataError as error:  # the plan of a recipe whose text is elsewhere is still worth seeing
            problem = error
        if problem is not None and as_json:
            raise problem
        plan = plan_of(loaded)
        check_disk(plan, output or Path("runs") / loaded.recipe.name)
        emit({"recipe": loaded.recipe.name, "plan": plan.to_json()}) if as_json else _print_plan(plan)
        if problem is not None:
            raise problem
        return
    if not resume:
        check_recipe(loaded)
    run = output or Path("runs") / loaded.recipe.name
    require_place(run)
    quiet_libraries()
    from ..stages.engine import run_recipe

    stated = plan_of(loaded)
    check_disk(stated, run)
    progress = RichProgress()
    progress.expect(steps_of(loaded.recipe))
    for warning in stated.warnings:
        progress.warn(warning)
    with progress.live():
        state = run_recipe(loaded, run, resume=resume, progress=progress)
    if as_json:
        emit({"run": str(run), "state": state.state, "plan": stated.to_json(), "results": state.results})
    else:
        _print_results(run, state)


def _print_plan(plan: Plan) -> None:
    from rich.table import Table

    budget = plan.budget
    table = Table(show_header=False, box=None)
    rows = [
        ("parameters of the base", f"{budget.base_params:,}"),
        (
            "parameters removed",
            f"{budget.removed_params:,} ({budget.global_sparsity:.2%}; target {budget.target_params:,})",
        ),
        *(
            (_kept(name, budget), f"{kept} of {budget.total_units[name]}")
            for name, kept in budget.keep.items()
        ),
        ("backbone", f"{plan.backbone_params:,} parameters, {plan.backbone_bytes:,} bytes"),
        (
            "one memory",
            (
                f"{plan.memory_params:,} parameters, {plan.memory_bytes:,} bytes, {plan.num_memory_layers} "
                "layers"
            ),
        ),
        ("training tokens", ", ".join(f"{name} {count:,}" for name, count in plan.training_tokens.items())),
        ("peak memory, estimated", f"{plan.peak_memory_bytes / 1e9:.2f} GB"),
        *(
            (f"time on {device}, estimated", f"{low:,.0f} to {high:,.0f} s")
            for device, (low, high) in plan.seconds.items()
        ),
    ]
    for row in rows:
        table.add_row(*row)
    console = stdout()
    console.print(table)
    for warning in plan.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def _kept(name: str, budget: Budget) -> str:
    kept = "kept" if budget.params_per_unit[name] else "not masked"
    return f"{name} {kept} in every layer" if budget.layout == "uniform" else f"{name} {kept}, mean of layers"


def _print_results(run: Path, state: RunState) -> None:
    print_results(state.results)
    stdout().print(f"{run}: finished. Next: koffkit export {run} --format hf", markup=False)


def steps_of(recipe: Recipe) -> dict[str, int]:
    """Training steps of every stage that has some."""
    training = {stage.name: getattr(stage.options, "max_steps", 0) for stage in recipe.stages}
    return {name: steps for name, steps in training.items() if steps}
