"""`koffkit compress --dry-run`: what a run would do, and with what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..devices import device_at_hand
from ..errors import DataError
from ..report.duration import duration
from .checks import check_cache_disk, check_disk, check_recipe
from .console import emit, say, stdout
from .supply import Supply, read_too_often, supply_rows, text_supply

if TYPE_CHECKING:
    from ..method.budget import Budget
    from ..planning.plan import Plan
    from ..recipe.load import LoadedRecipe

Rows = Iterator[tuple[str, str]]
CLASSES = {"cpu": "2 CPU cores", "mps": "2 CPU cores"}
"""The device class of a plan's times that the device at hand is nearest to; else a GPU."""


def dry_run_of(loaded: LoadedRecipe, run: Path, as_json: bool, device: str | None = None) -> None:
    """Print the plan of a recipe.

    Args:
        loaded: the recipe.
        run: the run folder that `compress` would make.
        as_json: print one JSON object instead of tables.
        device: the device that the user names; None: the accelerator of the machine, or the CPU.

    Raises:
        UsageError: something in the recipe cannot be carried out.
        DataError: text, a base or an encoder is missing; without `--json` the plan comes first, which is
            still worth seeing.
        ResourceError: the disk has no room for it.
    """
    from ..planning.plan import plan_of

    problem = None
    try:
        check_recipe(loaded)
    except DataError as error:
        if as_json:
            raise
        problem = error
    plan, at_hand, text = plan_of(loaded), device_at_hand(device), text_supply(loaded)
    plan = _with_text(plan, text)
    check_disk(plan, run)
    check_cache_disk(plan.teacher_cache_bytes, loaded, run)
    if as_json:
        emit({"recipe": loaded.recipe.name, "plan": plan.to_json(), "device": at_hand, "text": text})
        return
    _print(plan, at_hand, text)
    if problem is not None:
        raise problem


def _with_text(plan: Plan, text: Supply) -> Plan:
    """The plan with a teacher cache of the text that there is; training may read it more than once."""
    asked = sum(tokens["asked"] or 0 for tokens in text.values())
    if not asked or not plan.teacher_cache_bytes:
        return plan
    kept = sum(
        min(tokens["asked"] or 0, tokens["available"] or tokens["asked"] or 0) for tokens in text.values()
    )
    return replace(plan, teacher_cache_bytes=round(plan.teacher_cache_bytes * kept / asked))


def _print(plan: Plan, device: Mapping[str, Any], text: Supply) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for rows in (_sizes(plan), supply_rows(text), _costs(plan, device)):
        for row in rows:
            table.add_row(*row)
    stdout().print(table)
    for warning in [*plan.warnings, *read_too_often(text)]:
        say(f"warning: {warning}")


def _sizes(plan: Plan) -> Rows:
    budget, net = plan.budget, plan.net
    yield "parameters of the base", f"{budget.base_params:,}"
    target = f"{budget.global_sparsity:.2%}; target {budget.target_params:,}"
    yield "parameters removed", f"{budget.removed_params:,} ({target})"
    for name, kept in budget.keep.items():
        yield _kept(name, budget), f"{kept} of {budget.total_units[name]}"
    yield "backbone", f"{plan.backbone_params:,} parameters, {plan.backbone_bytes:,} bytes"
    size = f"{plan.memory_params:,} parameters, {plan.memory_bytes:,} bytes"
    yield "one memory", f"{size}, {plan.num_memory_layers} layers"
    against = f"{abs(net.saved):,} {'fewer' if net.saved >= 0 else 'more'} than the base"
    even = "" if net.break_even is None else f"; smaller with at most {net.break_even}"
    yield f"with {net.memories} memories", f"{net.total:,} bytes, {against}{even}"


def _kept(name: str, budget: Budget) -> str:
    kept = "kept" if budget.params_per_unit[name] else "not masked"
    return (
        f"{name} {kept} in every layer"
        if budget.layout == "uniform"
        else f"{name} {kept}, mean of {'layers with gates' if budget.layers else 'layers'}"
    )


def _costs(plan: Plan, device: Mapping[str, Any]) -> Rows:
    yield "training tokens", ", ".join(f"{name} {count:,}" for name, count in plan.training_tokens.items())
    for name, operations in plan.step_operations.items():
        cached = operations.get("cached")
        less = (
            ""
            if cached is None
            else f", with the teacher cache {cached:.3g} ({cached / operations['uncached']:.0%})"
        )
        yield f"operations of a step, {name}", f"{operations['uncached']:.3g}{less}"
    if plan.teacher_cache_bytes:
        yield "teacher cache", f"{plan.teacher_cache_bytes:,} bytes on disk"
    yield "peak memory, estimated", f"{plan.peak_memory_bytes / 1e9:.2f} GB"
    for name, (low, high) in plan.seconds.items():
        yield f"time on {name}, estimated", f"{low:,.0f} to {high:,.0f} s"
    what = f"{device['cores']} cores" if "cores" in device else device["name"]
    yield "device at hand", f"{device['kind']}, {what}"
    like = CLASSES.get(device["kind"], "one data-centre GPU")
    for stage, times in plan.stage_seconds.items():
        if times is None:
            yield f"stage {stage}", "as long as the text is"
        else:
            low, high = times[like]
            yield f"stage {stage}", f"{duration(low)} to {duration(high)}, as on {like}"
