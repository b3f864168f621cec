"""What the method would cost on 3B to 405B models and 1 to 1,024 GPUs: time and memory, from the operations,
bytes and memory that the plan counts (`koffkit/planning/cluster.py`), with nothing measured on such machines.

    python benchmarks/scale_model.py [--recipe llama-3.2-3b-topics] [--gpus 1,8,16,64,256,1024] [--domains 4]

Prints its assumptions, the table, and the same counts held against every figure that was measured. Writes all
of it as JSON. Exit code 1 if a measured point contradicts the counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

MODELS = [
    *("meta-llama/Llama-3.2-3B", "Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-7B", "meta-llama/Llama-3.1-8B"),
    *("Qwen/Qwen2.5-14B", "Qwen/Qwen2.5-32B", "meta-llama/Llama-3.1-70B", "Qwen/Qwen2.5-72B"),
    "meta-llama/Llama-3.1-405B",
]
SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"


class Point(NamedTuple):
    """A measured figure and what the counts say.

    Args:
        what: the figure. source: where it stands. measured: smallest and largest value.
        counted: smallest and largest value by the counts. slack: share by which they may be apart.
    """

    what: str
    source: str
    measured: tuple[float, float]
    counted: tuple[float, float]
    slack: float

    @property
    def agrees(self) -> bool:
        """Whether the two ranges meet, give or take the slack."""
        low, high = self.counted
        return self.measured[0] <= high * (1 + self.slack) and self.measured[1] >= low * (1 - self.slack)


def with_domains(recipe: Any, count: int) -> Any:
    """The recipe with the first domains, or with more of the same kind."""
    names = list(recipe.domains)
    source = recipe.domains[names[0]]
    chosen = {name: recipe.domains[name] for name in names[:count]}
    chosen |= {f"more-{index}": source for index in range(len(chosen), count)}
    return recipe.model_copy(update={"domains": chosen})


def rows_of(recipe: Any, models: list[str], gpus: list[int]) -> list[dict[str, Any]]:
    """An estimate of every model on every number of GPUs."""
    from koffkit.checkpoint.spec import ModelSpec
    from koffkit.planning.cluster import H100, estimate
    from koffkit.planning.shapes import SHAPES

    return [
        {"model": model, **asdict(estimate(recipe, ModelSpec(config=SHAPES[model]), H100, count))}
        for model in models
        for count in gpus
    ]


def points() -> list[Point]:
    """Every figure that was measured and that the counts speak of."""
    return [*_quickstart(), *_sparse_quickstart(), *_smollm_steps(), _paper()]


def _plan(name: str, overrides: list[str], config: dict[str, Any] | None = None) -> tuple[Any, Any, Any]:
    from koffkit.checkpoint.spec import ModelSpec
    from koffkit.hub import locate
    from koffkit.planning.plan import make_plan
    from koffkit.recipe.load import load_recipe

    loaded = load_recipe(name, overrides)
    base = loaded.recipe.base.model
    spec = ModelSpec(config=config) if config else ModelSpec.open(locate(base, loaded.root))
    return loaded.recipe, spec, make_plan(loaded.recipe, spec)


def _exact(what: str, measured: int, counted: int) -> Point:
    return Point(what, "results: Quickstart", (measured, measured), (counted, counted), 0)


def _quickstart() -> list[Point]:
    from koffkit.planning.estimates import THROUGHPUT

    recipe, _, plan = _plan("quickstart", [])
    steps = {stage.name: getattr(stage.options, "max_steps", 0) for stage in recipe.stages}
    # Both runs of the table: with memories, and one that learns masks alone.
    operations = sum(work["uncached"] * steps[name] for name, work in plan.step_operations.items())
    operations += plan.step_operations["learn_masks"]["uncached"] * steps["learn_masks"]
    slow, fast = THROUGHPUT["2 CPU cores"]
    peak = plan.peak_memory_bytes / 1e9
    return [
        _exact("parameters removed", 1_161_216, plan.budget.removed_params),
        _exact("parameters of a memory", 433_152, plan.memory_params),
        Point("peak memory, GB", "results: Quickstart, three seeds", (0.62, 0.64), (peak, peak), 0.25),
        Point(
            "seconds of two runs, 2 cores (evaluation and export are not counted)",
            "results: Quickstart, three seeds",
            (118, 141),
            (operations / fast, operations / slow),
            0,
        ),
    ]


def _sparse_quickstart() -> list[Point]:
    _, _, plan = _plan("quickstart", ["mask.global_sparsity=0.12"])
    return [
        _exact("parameters removed at 12 %", 442_368, plan.budget.removed_params),
        _exact("parameters of a memory at 12 %", 552_960, plan.memory_params),
    ]


def _smollm_steps() -> list[Point]:
    """Steps of SmolLM2 on 256 tokens: lower layers computed once for teacher and student, and twice; with a
    teacher cache, and without."""
    from koffkit.planning.shapes import SHAPES
    from koffkit.planning.work import cache_bytes_a_token

    every, upper = "all", "{upper: 16}"
    once = {layers: _smollm_step(layers, layers) for layers in (every, upper)}
    cached = {layers: _smollm_step(layers, layers, cached=True) / once[layers] for layers in once}
    # Gradients flow through lower layers that are computed twice, as if they had gates of their own.
    twice = _smollm_step(every, upper) / once[upper]
    recipe, spec, _ = _plan("quickstart", ["distill.cache=true", "distill.top_k=100"], SHAPES[SMOLLM])
    return [
        _smollm("step with the lower 14 of 30 layers twice / once", 1.3, twice, 0.05),
        _smollm("step with teacher cache / without, 30 layers", 0.681, cached[every], 0.05),
        _smollm("step with teacher cache / without, upper 16", 0.734, cached[upper], 0.05),
        _smollm("bytes a token of a teacher cache", 404, cache_bytes_a_token(recipe, spec), 0),
    ]


def _smollm(what: str, measured: float, counted: float, slack: float) -> Point:
    source = "results: A step with a teacher cache"
    return Point(f"{what} (SmolLM2)", source, (measured, measured), (counted, counted), slack)


def _smollm_step(gated: str, remembering: str, *, cached: bool = False) -> float:
    """Operations of a step of `real/step.py`, with gates and memories in these layers."""
    from koffkit.planning.shapes import SHAPES
    from koffkit.planning.work import step_work

    settings = ["memory.lora.rank=16", "memory.kv.tokens=32", "sequence_length=256", "mask.layout=ragged"]
    settings += ["mask.global_sparsity=0.1", f"mask.layers={gated}", f"memory.layers={remembering}"]
    recipe, spec, _ = _plan("quickstart", settings, SHAPES[SMOLLM])
    options = recipe.stages[0].options.model_copy(update={"batch_size": 1})
    return step_work(recipe, spec, options, cached=cached).operations


def _paper() -> Point:
    from koffkit.planning.shapes import SHAPES

    _, _, plan = _plan("paper/llama-3.1-8b-topics", [], SHAPES["meta-llama/Llama-3.1-8B"])
    peak = plan.peak_memory_bytes / 1e9
    return Point("8B at batch 1 fits one card, GB (the paper)", "arXiv 2605.29075", (0, 80), (peak, peak), 0)


def _time(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def show(rows: list[dict[str, Any]], checks: list[Point], title: str) -> None:
    """The table, and the counts against what was measured."""
    console = Console(width=140)
    table = Table(title=title)
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "model": lambda row: row["model"].split("/")[1],
        "GPUs": lambda row: f"{row['gpus']:,}",
        "base lies": lambda row: row["layout"] if row["fits"] else "does not fit",
        "GB a GPU": lambda row: f"{row['memory'] / 1e9:.0f}",
        "sequences": lambda row: str(row["sequences"]),
        "steps": lambda row: f"{row['steps']:,}",
        "computing s": lambda row: f"{row['computing']:.3f}",
        "fetching s": lambda row: f"{row['fetching']:.3f}",
        "adding s": lambda row: f"{row['adding']:.3f}",
        "training": lambda row: _time(row["seconds"]) if row["fits"] else "-",
        "of rate": lambda row: f"{row['utilisation']:.0%}" if row["fits"] else "-",
    }
    for name in columns:
        left = name in ("model", "base lies")
        table.add_column(name, justify="left" if left else "right", no_wrap=left)
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()), end_section=row["gpus"] == rows[-1]["gpus"])
    console.print(table)
    held = Table(title="the same counts against what was measured")
    for name in ("figure", "measured", "counted", "", "source"):
        held.add_column(name)
    for point in checks:
        ranges = (_range(point.measured), _range(point.counted))
        held.add_row(point.what, *ranges, "agrees" if point.agrees else "IS OFF", point.source)
    console.print(held)


def _range(values: tuple[float, float]) -> str:
    low, high = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values)
    return low if low == high else f"{low} to {high}"


@click.command(help=__doc__)
@click.option("--recipe", "name", default="llama-3.2-3b-topics", show_default=True)
@click.option("--model", "models", multiple=True, help="Hub id; repeatable.  [default: all]")
@click.option("--gpus", default="1,8,16,64,256,1024", show_default=True)
@click.option("--domains", type=click.IntRange(min=1), help="How many.  [default: the recipe's]")
@click.option("--json", "path", type=click.Path(path_type=Path), default=Path("build/scale_model.json"))
def main(name: str, models: tuple[str, ...], gpus: str, domains: int | None, path: Path) -> None:
    from koffkit.planning.cluster import ASSUMPTIONS, H100
    from koffkit.recipe.load import load_recipe

    recipe = load_recipe(name).recipe
    recipe = recipe if domains is None else with_domains(recipe, domains)
    rows, checks = (
        rows_of(recipe, list(models or MODELS), [int(count) for count in gpus.split(",")]),
        points(),
    )
    click.echo(f"Assumptions\n{ASSUMPTIONS}\n")
    show(rows, checks, f"{name}, {len(recipe.domains)} domains, on {H100.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    held = [point._asdict() | {"agrees": point.agrees} for point in checks]
    result = {
        "recipe": name,
        "assumptions": ASSUMPTIONS,
        "cluster": asdict(H100),
        "rows": rows,
        "checks": held,
    }
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    raise SystemExit(0 if all(point.agrees for point in checks) else 1)


if __name__ == "__main__":
    main()
