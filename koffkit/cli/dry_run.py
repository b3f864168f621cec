"""`koffkit compress --dry-run`: what a run would do, and with what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..devices import device_at_hand
from ..errors import DataError
from ..report.duration import duration
from .checks import check_cache_disk, check_disk, check_recipe
from .console import RichProgress, emit, quiet_libraries, say, stdout
from .supply import Supply, read_too_often, supply_rows, text_supply

if TYPE_CHECKING:
    from ..checkpoint.spec import ModelSpec
    from ..method.budget import Budget
    from ..planning.forecast import Forecast
    from ..planning.plan import Plan
    from ..planning.processes import Shared
    from ..recipe.load import LoadedRecipe

Rows = Iterator[tuple[str, str]]
CLASSES = {"cpu": "2 CPU cores", "mps": "2 CPU cores"}
"""The device class of a plan's times that the device at hand is nearest to; else a GPU."""


def dry_run_of(
    loaded: LoadedRecipe,
    run: Path,
    as_json: bool,
    device: str | None = None,
    probe: int | None = None,
    *,
    processes: int = 1,
    shard: bool = False,
) -> None:
    """Print the plan of a recipe.

    Args:
        loaded: the recipe.
        run: the run folder that `compress` would make.
        as_json: print one JSON object instead of tables.
        device: the device that the user names; None: the accelerator of the machine, or the CPU.
        probe: how many real steps of every training stage to time; None: none.
        processes: how many the run would have. shard: whether they divide the base among them.

    Raises:
        UsageError: something in the recipe cannot be carried out, or not in so many processes.
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
    forecast = None if problem is not None else _forecast(loaded, plan, at_hand, text, device, probe)
    shared = None if processes == 1 else _shared(loaded, at_hand, text, processes, shard)
    if as_json:
        shown = {"recipe": loaded.recipe.name, "plan": plan.to_json(), "device": at_hand, "text": text}
        costs = {"forecast": forecast, "processes": shared}
        emit(shown | {name: None if one is None else asdict(one) for name, one in costs.items()})
        return
    _print(plan, at_hand, text, forecast, shared)
    if problem is not None:
        raise problem


def _forecast(
    loaded: LoadedRecipe,
    plan: Plan,
    at_hand: dict[str, Any],
    text: Supply,
    device: str | None,
    probe: int | None,
) -> Forecast | None:
    """What the run will cost on this machine; None without torch, or where the base's shape is not known."""
    from ..planning.forecast import forecast_of, known_probe

    recipe, progress = loaded.recipe, RichProgress()
    if probe is not None:
        quiet_libraries()
        from ..stages.costs import probe_recipe

        with progress.live():
            return probe_recipe(loaded, probe, device, progress)
    known = known_probe(recipe, at_hand)
    if known is not None or find_spec("torch") is None:
        return known
    from ..planning.machine import known_machine, measured_machine

    machine = known_machine(at_hand)
    if machine is None:
        progress.message("measuring this machine, once")
        machine = measured_machine(at_hand, device)
    return forecast_of(recipe, _spec(loaded), plan, machine, _tokens(text))


def _shared(
    loaded: LoadedRecipe, at_hand: dict[str, Any], text: Supply, processes: int, shard: bool
) -> Shared:
    """The plan for several processes, by the machine's speed if it was measured."""
    from ..planning.machine import known_machine
    from ..planning.processes import shared_run

    machine = known_machine(at_hand)
    return shared_run(loaded.recipe, _spec(loaded), machine, _tokens(text), processes, shard=shard)


def _spec(loaded: LoadedRecipe) -> ModelSpec:
    from ..checkpoint.spec import ModelSpec
    from ..hub import locate

    base = loaded.recipe.base
    return ModelSpec.open(locate(base.model, loaded.root, revision=base.revision, config_only=True))


def _tokens(text: Supply) -> dict[str, int | None]:
    return {name: count["available"] for name, count in text.items()}


def _with_text(plan: Plan, text: Supply) -> Plan:
    """The plan with a teacher cache of the text that there is; training may read it more than once."""
    asked = sum(tokens["asked"] or 0 for tokens in text.values())
    if not asked or not plan.teacher_cache_bytes:
        return plan
    kept = sum(
        min(tokens["asked"] or 0, tokens["available"] or tokens["asked"] or 0) for tokens in text.values()
    )
    return replace(plan, teacher_cache_bytes=round(plan.teacher_cache_bytes * kept / asked))


def _print(
    plan: Plan, device: Mapping[str, Any], text: Supply, forecast: Forecast | None, shared: Shared | None
) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    more = () if shared is None else _in_processes(shared)
    for rows in (_sizes(plan), supply_rows(text), _costs(plan, device, forecast), more):
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
    yield "one memory", ", ".join([size, *_halves(plan)])
    against = f"{abs(net.saved):,} {'fewer' if net.saved >= 0 else 'more'} than the base"
    even = "" if net.break_even is None else f"; smaller with at most {net.break_even}"
    yield f"with {net.memories} memories", f"{net.total:,} bytes, {against}{even}"


def _halves(plan: Plan) -> Iterator[str]:
    if plan.num_memory_layers:
        yield f"{plan.num_memory_layers} layers"
    if plan.memory_neurons:
        yield f"{plan.memory_neurons:,} neurons"


def _kept(name: str, budget: Budget) -> str:
    kept = "kept" if budget.params_per_unit[name] else "not masked"
    return (
        f"{name} {kept} in every layer"
        if budget.layout == "uniform"
        else f"{name} {kept}, mean of {'layers with gates' if budget.layers else 'layers'}"
    )


def _costs(plan: Plan, device: Mapping[str, Any], forecast: Forecast | None) -> Rows:
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
    probed = forecast is not None and forecast.basis == "probe"
    peak = forecast.peak_memory if forecast is not None else plan.peak_memory_bytes
    yield f"peak memory, {'measured' if probed else 'estimated'}", f"{peak / 1e9:.2f} GB"
    if forecast is not None:
        yield "disk", f"{forecast.disk:,} bytes at most while the run lasts"
    for name, (low, high) in plan.seconds.items():
        yield f"time on {name}, estimated", f"{low:,.0f} to {high:,.0f} s"
    what = f"{device['cores']} cores" if "cores" in device else device["name"]
    yield "device at hand", f"{device['kind']}, {what}"
    like = CLASSES.get(device["kind"], "one data-centre GPU")
    for stage, times in plan.stage_seconds.items():
        here = None if forecast is None else forecast.seconds.get(stage)
        if here is not None:
            by = "real steps" if probed else "the speed measured"
            yield f"stage {stage}", f"{duration(here)} on this machine, by {by}"
        elif times is None:
            yield f"stage {stage}", "as long as the text is"
        else:
            low, high = times[like]
            yield f"stage {stage}", f"{duration(low)} to {duration(high)}, as on {like}"


def _in_processes(shared: Shared) -> Rows:
    base = "a part of the base" if shared.sharded else "a copy of the base"
    rows = f"{shared.sequences} sequence{'' if shared.sequences == 1 else 's'} at once"
    each = f"{base}, {rows}, {shared.peak_memory / 1e9:.2f} GB at most, estimated"
    yield f"each of {shared.processes} processes", each
    for stage, seconds in shared.seconds.items():
        if seconds is not None:
            took = f"{duration(seconds)} by the speed measured; adding up gradients is not counted"
            yield f"stage {stage} in {shared.processes} processes", took
