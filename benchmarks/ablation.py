"""The ablation table on the embedded default: what each part of the method is worth, over several seeds.

    python benchmarks/ablation.py --seeds 0,1,2

Every row is the quickstart recipe with cold gates and a few fields changed. Finished runs are kept and not
repeated; `--only` picks rows.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

LORA, KV = "memory.lora=null", "memory.kv=null"
UPPER = "memory.layers={upper: 4}"
RAGGED, HALF = (
    "mask.layout=ragged",
    "mask.global_sparsity=0.46",
)  # where ragged layers, too, lose what memories must bring back
MASKS_FIRST = "stages.learn_masks.joint=false"
VARIANTS: dict[str, list[str]] = {
    "KOFF": [],
    "pruning only": [LORA, KV],
    "+ KV": [LORA],
    "+ LoRA": [KV],
    "prune -> recover": [MASKS_FIRST],
    "upper 4 of 6 layers": [UPPER],
    "no retention": ["retention=null"],
    "cross-entropy (SFT)": ["distill.loss=cross_entropy"],
    "blended KL and cross-entropy": ["distill.loss=blended"],
    "full KL": ["distill.loss=full"],
    "ragged": [RAGGED],
    "ragged, pruning only": [RAGGED, LORA, KV],
    "46 % gone: uniform": [HALF],
    "46 % gone: uniform, pruning only": [HALF, LORA, KV],
    "46 % gone: uniform, prune -> recover": [HALF, MASKS_FIRST],
    "46 % gone: ragged": [HALF, RAGGED],
    "46 % gone: ragged, pruning only": [HALF, RAGGED, LORA, KV],
    "46 % gone: ragged, prune -> recover": [HALF, RAGGED, MASKS_FIRST],
    "paper gates": ["mask.structures=paper", RAGGED],
    "warm gates (Taylor)": ["mask.init=taylor"],
    "warm gates (activation)": ["mask.init=activation"],
    "progressive": ["mask.controller=progressive"],
    "Lagrangian": ["mask.controller=lagrangian"],
    "annealed temperature": ["mask.temperature={start: 1.0, end: 0.3}"],
    "learned placement": ["memory.layers={learned_bytes: 1200000}"],
}


def settings(overrides: list[str], recall: int) -> list[str]:
    """What every row changes of the quickstart (cold gates, no swap matrix), then what this one does."""
    return [
        "mask.init=cold",
        *(
            f"stages.{rest}"
            for rest in ("evaluate.swap=false", f"evaluate.recall_limit={recall}", "evaluate.max_tokens=2048")
        ),
        *overrides,
    ]


def run(name: str, overrides: list[str], seed: int, folder: Path, recall: int) -> dict[str, Any]:
    """The mean figures of one run, and what its base kept."""
    from koffkit.progress import Silent
    from koffkit.recipe.load import load_recipe
    from koffkit.run.folder import RunFolder
    from koffkit.stages.engine import run_recipe

    slug = "".join(c if c.isalnum() else "-" for c in name).strip("-").lower()
    output = folder / f"{slug}-{seed}"
    loaded = load_recipe("quickstart", [f"seed={seed}", *settings(overrides, recall)])
    state = run_recipe(loaded, output, resume=RunFolder(output).exists, progress=Silent())
    return {
        "mean": state.results["mean"],
        "sparsity": state.budget.global_sparsity,
        "layers": state.memory_layers,
    }


def recovered(mean: dict[str, Any]) -> dict[str, float]:
    """The condition a user would load: the matched memory, or the backbone when there is none."""
    return mean.get("matched") or mean["backbone"]


@click.command(help=__doc__)
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--only", help="Rows to run, by a part of their name; comma-separated.")
@click.option("--recall", default=200, show_default=True, help="Facts per language.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/ablation"), show_default=True)
def main(seeds: str, only: str | None, recall: int, runs: Path) -> None:
    from koffkit.cli.console import quiet_libraries

    quiet_libraries()
    chosen = {
        name: sets
        for name, sets in VARIANTS.items()
        if only is None or any(part in name for part in only.split(","))
    }
    numbers = [int(seed) for seed in seeds.split(",")]
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in numbers:
        for name, overrides in chosen.items():
            results.setdefault(name, []).append(run(name, overrides, seed, runs, recall))
            figures = recovered(results[name][-1]["mean"])
            click.echo(
                f"seed {seed}, {name}: recall {figures['recall']:.1%}, KL {figures['kl']:.4f}", err=True
            )
    show(results, numbers)
    draw(results, runs / "ablation.png")
    (runs / "ablation.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def show(results: dict[str, list[dict[str, Any]]], seeds: list[int]) -> None:
    first = next(iter(results.values()))
    sparsity = statistics.fmean(row["sparsity"] for row in first)
    table = Table(
        title=f"quickstart at {sparsity:.1%} of all parameters removed, seeds {', '.join(map(str, seeds))}"
    )
    for column in ("", "recall", "+-", "KL", "perplexity", "backbone alone"):
        table.add_column(column, justify="left" if not column else "right")
    unpruned = [row["mean"]["unpruned"] for row in first]
    table.add_row("unpruned", *cells(unpruned), "")
    for name, rows in results.items():
        alone = statistics.fmean(row["mean"]["backbone"]["recall"] for row in rows)
        table.add_row(name, *cells([recovered(row["mean"]) for row in rows]), f"{alone:.1%}")
    Console(width=110).print(table)


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Recall and KL of every row, a dot a seed and a line at the mean."""
    from matplotlib.figure import Figure

    names = list(results)
    canvas = Figure(figsize=(11, 0.32 * len(names) + 1.2), layout="constrained")
    axes = canvas.subplots(1, 2, sharey=True)
    for axis, key, title in zip(
        axes, ("recall", "kl"), ("fact recall", "KL to the unpruned model, nats a token"), strict=True
    ):
        for place, rows in enumerate(results.values()):
            values = [recovered(row["mean"])[key] for row in rows]
            colour = "#d98b5f" if "pruning only" in names[place] else "#1f5fa8"
            axis.scatter(values, [place] * len(values), s=22, color=colour, alpha=0.75, zorder=3)
            axis.vlines(
                statistics.fmean(values), place - 0.3, place + 0.3, color=colour, linewidth=2, zorder=2
            )
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", color="#dddddd")
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes[1].set_xscale("log")
    axes[1].set_xticks(ticks := [0.02, 0.05, 0.1, 0.2], [str(tick) for tick in ticks])
    axes[1].minorticks_off()
    canvas.savefig(path, dpi=130)


def cells(rows: list[dict[str, float]]) -> list[str]:
    recall = [row["recall"] for row in rows]
    std = statistics.stdev(recall) if len(recall) > 1 else 0.0
    kl, perplexity = (statistics.fmean(row[key] for row in rows) for key in ("kl", "perplexity"))
    return [f"{statistics.fmean(recall):.1%}", f"{std:.1%}", f"{kl:.4f}", f"{perplexity:.2f}"]


if __name__ == "__main__":
    main()
