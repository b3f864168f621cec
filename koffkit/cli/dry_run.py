"""`koffkit compress --dry-run`: what a run would do, and with what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..devices import device_at_hand
from ..errors import DataError, KoffkitError
from ..report.duration import duration
from .checks import check_disk, check_recipe
from .console import emit, say, stdout

if TYPE_CHECKING:
    from ..method.budget import Budget
    from ..planning.plan import Plan
    from ..recipe.load import LoadedRecipe

Rows = Iterator[tuple[str, str]]
OFTEN = 20
"""Times that training may read a domain's text before a warning says so."""
CLASSES = {"cpu": "2 CPU cores", "mps": "2 CPU cores"}
"""The device class of a plan's times that the device at hand is nearest to; else a GPU."""


def dry_run_of(loaded: LoadedRecipe, run: Path, as_json: bool) -> None:
    """Print the plan of a recipe.

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
    plan, device, text = plan_of(loaded), device_at_hand(), _text(loaded)
    check_disk(plan, run)
    if as_json:
        emit({"recipe": loaded.recipe.name, "plan": plan.to_json(), "device": device, "text": text})
        return
    _print(plan, device, text)
    if problem is not None:
        raise problem


def _text(loaded: LoadedRecipe) -> dict[str, dict[str, int | None]]:
    """Tokens that are there for training and tokens that it will read, by domain; null: not known."""
    from ..data.estimate import available_tokens
    from ..hub import is_hub_id, locate
    from ..planning.estimates import asked_tokens

    base = loaded.recipe.base
    try:
        folder = None if is_hub_id(base.model, loaded.root) else locate(base.model, loaded.root)
        available = available_tokens(loaded, folder)
    except (KoffkitError, OSError):  # what is wrong has been said
        available = {}
    asked = asked_tokens(loaded.recipe)
    if "all domains" in available:  # they are found later
        kept = {"retention": asked.pop("retention")} if "retention" in asked else {}
        asked = {"all domains": sum(asked.values())} | kept
    return {name: {"available": available.get(name), "asked": count} for name, count in asked.items()}


def _print(plan: Plan, device: Mapping[str, Any], text: Mapping[str, Mapping[str, int | None]]) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for rows in (_sizes(plan), _texts(text), _costs(plan, device)):
        for row in rows:
            table.add_row(*row)
    stdout().print(table)
    for warning in [*plan.warnings, *_too_often(text)]:
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


def _texts(text: Mapping[str, Mapping[str, int | None]]) -> Rows:
    for name, tokens in text.items():
        available, asked = tokens["available"], tokens["asked"] or 0
        there = "unknown" if available is None else f"about {available:,}"
        times = f", read {asked / available:,.1f} times" if available else ""
        yield f"tokens of {name}", f"{there} there, {asked:,} asked for{times}"


def _costs(plan: Plan, device: Mapping[str, Any]) -> Rows:
    yield "training tokens", ", ".join(f"{name} {count:,}" for name, count in plan.training_tokens.items())
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


def _too_often(text: Mapping[str, Mapping[str, int | None]]) -> Iterator[str]:
    for name, tokens in text.items():
        available, asked = tokens["available"], tokens["asked"] or 0
        if available is not None and asked > OFTEN * available:
            times = asked / max(1, available)
            yield f"{name}: its {available:,} tokens are read {times:,.0f} times; more text or fewer steps."
