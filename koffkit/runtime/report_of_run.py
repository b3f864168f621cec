"""What the report shows of a run, from its files alone: no model is loaded, and no base is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..arch.widths import linear_shapes
from ..artefact.public import public_name
from ..checkpoint.spec import ModelSpec
from ..masks.file import load_masks
from ..masks.masks import Masks
from ..masks.slicing import widths_of
from ..planning.plan import Plan
from ..report.costs import cost_rows
from ..report.duration import duration
from ..report.page.facts import Completion, Cut, PageFacts, Planned, Sizes
from ..report.page.render import readable
from ..run.folder import RunFolder
from ..run.live import training_steps
from ..run.state import RunState
from .baseline import plan_of_run, with_baseline

NEAR = 0.05
"""Share of the target within which the gates count as having reached it."""
CARRIED = ("kl", "loss", "heldout_kl", "expected_sparsity", "sparsity")
UNFINISHED = "The run is not finished: what is not there yet is left out."
NO_PLAN = "The recipe is of another version of koffkit, so what was planned is not known."


def facts_of_run(folder: RunFolder, baseline: RunFolder | None = None) -> PageFacts:
    """Everything that the page shows of a run, finished or not.

    Args:
        folder: the run.
        baseline: another run, to be shown beside it.

    Raises:
        UsageError: this is not a run folder, or the baseline was measured on something else.
        IntegrityError: its masks are damaged.
    """
    state = folder.read()
    spec = ModelSpec(config=state.base.config)
    masks = load_masks(folder.masks_file, spec) if folder.masks_file.is_file() else {}
    rows, plan = list(metrics(folder.metrics_file)), plan_of_run(state)
    steps = _counted(rows, state)
    return PageFacts(
        kind="run",
        title=str(state.recipe["name"]),
        about=_about(state, spec),
        results=state.results if baseline is None else with_baseline(folder, baseline),
        sparsity=state.budget.global_sparsity,
        target=state.budget.target_params / state.budget.base_params,
        base_parameters=state.budget.base_params,
        removed_parameters=state.budget.removed_params,
        projections=projections(spec, masks),
        structures=structures(masks),
        steps=steps,
        steps_to_target=steps_to_target(steps),
        plan=[] if plan is None else list(_planned(state, rows, plan)),
        sizes=None if plan is None else _sizes(plan),
        analyses=_stored(folder.analyses_file),
        completions=[Completion(**sample) for sample in _stored(folder.completions_file).get("samples", [])],
        loading=_loading(state),
        notes=[*([] if state.is_finished else [UNFINISHED]), *([NO_PLAN] if plan is None else [])],
    )


def _about(state: RunState, spec: ModelSpec) -> dict[str, str]:
    about = {
        "base": f"{public_name(state.base.model, False)} ({spec.config.get('model_type')})",
        "layout": state.budget.layout,
        "domains": str(len(state.recipe["domains"])),
        "seed": str(state.seed),
        "begun": readable_time(state.started),
    }
    if state.finished is not None:
        about["finished"] = readable_time(state.finished)
    return about | {"koffkit": state.versions.get("koffkit", "-")}


def readable_time(stamp: str) -> str:
    """`2026-11-27 00:21 UTC`."""
    return f"{stamp[:10]} {stamp[11:16]} UTC"


def _stored(path: Path) -> dict[str, Any]:
    """What an earlier command kept in the run; empty if there is nothing, or it was cut short."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of `metrics.jsonl`, but for a line that was cut short."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if (
                isinstance(row, dict)
                and isinstance(row.get("stage"), str)
                and isinstance(row.get("step"), int)
            ):
                yield row


def _counted(rows: Sequence[Mapping[str, Any]], state: RunState) -> list[dict[str, Any]]:
    """The rows that curves need, with steps numbered across stages; retention steps have another loss."""
    before, total = {}, 0
    for stage, steps in training_steps(state.recipe).items():
        before[stage], total = total, total + steps
    return [
        {"step": before.get(row["stage"], 0) + row["step"], "stage": row["stage"]}
        | {key: row[key] for key in CARRIED if isinstance(row.get(key), int | float)}
        for row in rows
        if row.get("domain") != "retention"
    ]


def steps_to_target(steps: Sequence[Mapping[str, Any]]) -> int | None:
    """The first step from which the gates stay within `NEAR` of what the recipe wants gone; 0: they ended
    elsewhere; None: no gates were learned."""
    rows = [row for row in steps if "expected_sparsity" in row and row.get("sparsity")]
    if not rows:
        return None
    reached = 0
    for row in rows:
        near = abs(row["expected_sparsity"] - row["sparsity"]) <= NEAR * row["sparsity"]
        reached = (reached or int(row["step"])) if near else 0
    return reached


def projections(spec: ModelSpec, masks: Masks) -> list[Cut]:
    """How many weights of every projection are gone, those of projections that nothing was taken from left
    out."""
    if not masks:
        return []
    full, cuts = linear_shapes(spec.shape), []
    for layer, widths in enumerate(widths_of(spec, masks)):
        kept = linear_shapes(spec.shape, widths)
        cuts += [
            Cut(place=place, layer=layer, kept=kept[place][0] * kept[place][1], total=out * width)
            for place, (out, width) in full.items()
        ]
    cut = {one.place for one in cuts if one.kept < one.total}
    return [one for one in cuts if one.place in cut]


def structures(masks: Masks) -> list[Cut]:
    """How many units of every structure are gone."""
    return [
        Cut(place=name, layer=layer, kept=int(keep.sum()), total=len(keep))
        for (layer, name), keep in sorted(masks.items())
    ]


def _planned(state: RunState, rows: Sequence[Mapping[str, Any]], plan: Plan) -> Iterator[Planned]:
    budget = state.budget
    yield Planned(
        what="parameters removed",
        planned=f"at least {budget.target_params:,}",
        actual=f"{budget.removed_params:,} ({budget.global_sparsity:.1%})",
    )
    steps = training_steps(state.recipe)
    for stage in state.stages:
        done = [row for row in rows if row["stage"] == stage.name]
        took = _seconds(done) if done else stage.seconds
        if stage.name in steps:
            yield Planned(
                what=f"{stage.name}: steps", planned=f"{steps[stage.name]:,}", actual=f"{len(done):,}"
            )
        if state.foreseen is None or state.spent is None:
            yield Planned(
                what=f"{stage.name}: time",
                planned=_ranges(plan.stage_seconds.get(stage.name)),
                actual="-" if took is None else duration(took),
            )
    if state.foreseen is not None and state.spent is not None:
        rows_of_costs = cost_rows(state.foreseen, state.spent)
        yield from (Planned(what=what, planned=first, actual=then) for what, first, then in rows_of_costs)
        return
    peaks = [int(row["peak_memory"]) for row in rows if row.get("peak_memory")]
    yield Planned(
        what="peak memory",
        planned=f"about {readable(plan.peak_memory_bytes)}",
        actual=readable(max(peaks)) if peaks else "-",
    )


def _seconds(rows: Sequence[Mapping[str, Any]]) -> float:
    """The time that steps took; pauses between commands do not count."""
    return sum(
        float(row["tokens"] / row["tokens_per_second"])
        for row in rows
        if row.get("tokens") and row.get("tokens_per_second")
    )


def _ranges(devices: Mapping[str, tuple[float, float]] | None) -> str:
    if devices is None:
        return "the text decides"
    return "; ".join(f"{_range(*seconds)} on {device}" for device, seconds in devices.items())


def _range(low: float, high: float) -> str:
    first, last = duration(low), duration(high)
    return f"{first} to {last}" if first != last else f"about {first}" if high >= 1 else "under 1 s"


def _sizes(plan: Plan) -> Sizes:
    return Sizes(
        base=plan.base_bytes,
        backbone=plan.backbone_bytes,
        memories=dict.fromkeys(plan.domains, plan.memory_bytes) if plan.memory_bytes else {},
        break_even=plan.net.break_even,
        estimated=True,
    )


def _loading(state: RunState) -> list[tuple[str, str]]:
    name = str(state.recipe["name"])
    memory = state.recipe["memory"]
    learned = any(memory.get(part) for part in ("lora", "kv", "neurons"))
    domain = next(iter(state.recipe["domains"]), None) if learned else None
    return [
        ("Make an export of this run", f"koffkit export RUN --format hf --output {name}"),
        ("Try it", f'koffkit generate {name} --prompt "..."' + (f" --memory {domain}" if domain else "")),
        ("In Python", python_lines(name, domain)),
        ("In transformers alone", stock_lines(name)),
    ]


def python_lines(name: str, domain: str | None) -> str:
    """How koffkit loads an export with its memories."""
    lines = ["from koffkit import KoffModel", "", f'model = KoffModel.from_pretrained("{name}")']
    lines.append('print(model.complete("...", memory=None))  # the bare backbone')
    if domain is not None:
        lines += [
            f'print(model.complete("...", memory="{domain}"))',
            'print(model.complete("...", memory="auto"))  # the router picks',
        ]
    return "\n".join(lines)


def stock_lines(name: str) -> str:
    """How other software loads the backbone."""
    return (
        "from transformers import AutoModelForCausalLM\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}/backbone")'
    )
