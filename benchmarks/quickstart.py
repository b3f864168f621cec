"""The quickstart: compress the model that ships with koffkit, with memories and without, export both, and
compare; also with a mask that only removes less, so that as much is loaded as with a memory.

    python benchmarks/quickstart.py [--seed 0] [--sparsity 0.33] [--runs runs] [--exports exports]

Prints one table and the swap matrix, and draws them into `RUNS/make-quickstart.png`. What the last quickstart
left under the same names is replaced.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import click

from koffkit.run.state import RunState

BEGIN = time.monotonic()
NAME = "make-quickstart"
TITLES = {"koff": "pruning and memories (KOFF)", "pruned": "pruning only", "less": "pruning less"}
LEAST_LOSS = 0.05  # below this loss of recall, the share of it that a memory recovers is noise


def compress(seed: int, sparsity: float | None, run: Path, overrides: tuple[str, ...]) -> RunState:
    from koffkit.cli.console import RichProgress
    from koffkit.recipe.load import load_recipe
    from koffkit.stages.engine import run_recipe

    sets = [f"seed={seed}", *overrides] + ([] if sparsity is None else [f"mask.global_sparsity={sparsity}"])
    progress = RichProgress()
    with progress.live():
        return run_recipe(load_recipe("quickstart", sets), run, progress=progress)


def export(run: Path, output: Path) -> dict[str, Any]:
    from koffkit.exporters import export as export_run

    from koffkit.cli.console import RichProgress

    return export_run(run, output, progress=RichProgress())


def prune_less(seed: int, sparsity: float | None, overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Settings of the baseline that hurts most: no memory and no training, one mask by activation norm in
    ragged layers, that leaves as many parameters as backbone and one memory have."""
    from koffkit.planning.plan import plan_of
    from koffkit.recipe.load import load_recipe

    sets = [f"seed={seed}", *overrides] + ([] if sparsity is None else [f"mask.global_sparsity={sparsity}"])
    plan = plan_of(load_recipe("quickstart", sets))
    less = (plan.budget.removed_params - plan.memory_params) / plan.budget.base_params
    evaluate = "{evaluate: {max_tokens: 1024, recall_limit: 200}}"
    return (
        *("memory.lora=null", "memory.kv=null", "mask.layout=ragged", "mask.multiple_of=1"),
        f"mask.global_sparsity={less}",
        f"stages=[{{select_masks: {{batch_size: 4}}}}, {evaluate}]",
    )


def comparison(
    koff: dict[str, Any],
    pruned: dict[str, Any],
    less: dict[str, Any],
    exports: dict[str, dict[str, Any]],
    base_bytes: int,
) -> dict[str, Any]:
    """One row a condition: mean recall and perplexity, parameters and bytes of what must be loaded."""
    backbone, memories = exports["koff"]["backbone"], list(exports["koff"]["domains"].values())
    base = exports["koff"]["base"]["parameters"]
    one = {key: max(memory[key] for memory in memories) for key in ("parameters", "bytes")}
    with_memory = {key: backbone[key] + one[key] for key in ("parameters", "bytes")}
    alone, wider = (
        {key: exports[name]["backbone"][key] for key in ("parameters", "bytes")}
        for name in ("pruned", "less")
    )
    return {
        "unpruned": koff["unpruned"] | {"parameters": base, "bytes": base_bytes},
        "pruning only": pruned["backbone"] | alone,
        "pruning less, untrained": less["backbone"] | wider,
        "KOFF": koff["matched"] | with_memory,
        "KOFF, wrong memory": koff["swap"] | with_memory,
        "KOFF, no memory": koff["backbone"] | {key: backbone[key] for key in ("parameters", "bytes")},
    }


def verdict(rows: dict[str, Any], koff: dict[str, Any], exports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures that the quickstart is held to."""
    from koffkit.report.swap import matched_best

    recall = {name: row["recall"] for name, row in rows.items()}
    lost = recall["unpruned"] - recall["pruning only"]

    def share(name: str) -> float | None:
        return (recall[name] - recall["pruning only"]) / lost if lost > LEAST_LOSS else None

    return {
        "recall_lost_by_pruning": lost,
        "recall_lost_by_koff": recall["unpruned"] - recall["KOFF"],
        "share_recovered_matched": share("KOFF"),
        "share_recovered_wrong": share("KOFF, wrong memory"),
        "matched_best_perplexity": matched_best(koff, "perplexity"),
        "matched_best_recall": matched_best(koff, "recall"),
        "removed_parameters": exports["koff"]["removed"]["parameters"],
        "largest_memory_parameters": max(
            memory["parameters"] for memory in exports["koff"]["domains"].values()
        ),
        "parity": max(exports["koff"]["parity"]["max_abs"].values()),
    }


def show(rows: dict[str, Any], figures: dict[str, Any], koff: dict[str, Any]) -> None:
    from rich.bar import Bar
    from rich.console import Console
    from rich.table import Table

    from koffkit.report.table import format_figure, swap_table

    table = Table(title="quickstart: six languages of facts, mean over domains")
    table.add_column("")
    for name in ("recall", "perplexity", "parameters", "bytes"):
        table.add_column(name, justify="right")
        if name == "recall":
            table.add_column("")
    for name, row in rows.items():
        recall, perplexity = (format_figure(key, row[key]) for key in ("recall", "perplexity"))
        bar = Bar(size=1, begin=0, end=row["recall"], width=10, color="blue")
        table.add_row(
            name.replace("KOFF, ", "  "),
            recall,
            bar,
            perplexity,
            f"{row['parameters']:,}",
            f"{row['bytes']:,}",
        )
    console = Console(highlight=False)
    console.print(table)
    for figure in ("recall", "perplexity"):
        console.print(swap_table(koff, figure))
    shares = ""
    if figures["share_recovered_matched"] is not None:
        shares = (
            f"The matched memory recovers {figures['share_recovered_matched']:.0%} of the loss, a wrong one "
            f"{figures['share_recovered_wrong']:.0%}. "
        )
    console.print(
        f"Pruning alone loses {figures['recall_lost_by_pruning']:.1%} of recall, KOFF "
        f"{figures['recall_lost_by_koff']:.1%}. {shares}"
        f"Matched is best in {figures['matched_best_recall']} of {len(koff['domains'])} rows by recall, "
        f"{figures['matched_best_perplexity']} by perplexity.\n"
        f"{figures['removed_parameters']:,} parameters are gone; a memory has "
        f"{figures['largest_memory_parameters']:,}. "
        f"Masked and sliced differ by {figures['parity']:.1e} at most."
    )


def draw(path: Path, koff: dict[str, Any], pruned: dict[str, Any], sparsity: float) -> None:
    from koffkit.report.figure import draw_comparison

    def recall(results: dict[str, Any], condition: str) -> list[float]:
        return [result[condition]["recall"] for result in results["domains"].values()]

    def wrong(result: dict[str, Any]) -> float:
        return sum(row["recall"] for row in result["swap"].values()) / len(result["swap"])

    bars = {
        "unpruned": recall(koff, "unpruned"),
        "pruning only": recall(pruned, "backbone"),
        "wrong memory": [wrong(result) for result in koff["domains"].values()],
        "KOFF": recall(koff, "matched"),
    }
    title = f"koffkit quickstart: {sparsity:.0%} of all parameters removed"
    draw_comparison(path, title, bars, koff, "recall")


@click.command(help=__doc__)
@click.option("--seed", default=0, show_default=True)
@click.option("--sparsity", type=float, help="Instead of the recipe's global sparsity.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="a.b=VALUE",
    help="Change a field of the recipe, in both runs.",
)
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--exports", type=click.Path(path_type=Path), default=Path("exports"), show_default=True)
def main(seed: int, sparsity: float | None, overrides: tuple[str, ...], runs: Path, exports: Path) -> None:
    from koffkit.cli.console import quiet_libraries

    quiet_libraries()
    parts = {
        "pruned": ("-pruning-only", (*overrides, "memory.lora=null", "memory.kv=null")),
        "koff": ("", overrides),
    }
    parts["less"] = ("-pruning-less", (*overrides, *prune_less(seed, sparsity, overrides)))
    states, manifests = {}, {}
    for part, (suffix, sets) in parts.items():
        run, output = runs / f"{NAME}{suffix}", exports / f"{NAME}{suffix}"
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(output, ignore_errors=True)
        click.echo(f"== {TITLES[part]}: {run}", err=True)
        states[part] = compress(seed, None if part == "less" else sparsity, run, sets)
        manifests[part] = export(run, output)
    koff, pruned = states["koff"].results, states["pruned"].results
    base_bytes = (Path(states["koff"].base.path) / "model.safetensors").stat().st_size
    rows = comparison(koff["mean"], pruned["mean"], states["less"].results["mean"], manifests, base_bytes)
    figures = verdict(rows, koff, manifests)
    picture = runs / f"{NAME}.png"
    draw(picture, koff, pruned, manifests["koff"]["removed"]["global_sparsity"])
    show(rows, figures, koff)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures |= {"seconds": time.monotonic() - BEGIN, "peak_rss_bytes": peak, "seed": seed, "rows": rows}
    (runs / f"{NAME}.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    click.echo(
        f"Three runs and exports: {figures['seconds']:.0f} s, peak RSS {peak / 1e9:.2f} GB. "
        f"Picture: {picture}"
    )
    click.echo(
        f'Try: koffkit generate {exports / NAME} --prompt "Das Land mit dem Code NA heißt" --memory de'
    )


if __name__ == "__main__":
    main()
