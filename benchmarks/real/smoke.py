"""A real LLM exports: SmolLM2-135M-Instruct through compress, export and the parity gate.

    python benchmarks/real/prepare.py
    python benchmarks/real/smoke.py --corpus FOLDER [--model FOLDER] [--work runs/real]

FOLDER holds `history.txt` and `science.txt`, or the same with `.xz`. Prints the figures of the gate: how far
masked and sliced differ in float64, and what rounding to float32 does to the same backbone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click

RECIPE = Path(__file__).with_name("smoke.yaml")
DOMAINS = ("history", "science")


def source(corpus: Path, domain: str) -> Path:
    """The text of a domain, packed or not."""
    packed = corpus / f"{domain}.txt.xz"
    return packed if packed.is_file() else corpus / f"{domain}.txt"


def gate_figures(manifest: dict[str, Any]) -> dict[str, Any]:
    """Of all conditions the worst."""
    parity = manifest["parity"]
    relative = [parity["max_abs"][name] / parity["max_logit"][name] for name in parity["max_abs"]]
    return {
        "max_abs_float64": max(parity["max_abs"].values()),
        "relative_float64": max(relative),
        "limit": parity["tolerance"],
        "largest_logit": max(parity["max_logit"].values()),
        "noise_floor_float32": max(parity["noise_floor"]["max_abs"].values()),
        "noise_floor_kl": max(parity["noise_floor"]["kl"].values()),
        "removed": manifest["removed"]["global_sparsity"],
    }


@click.command()
@click.option("--corpus", type=click.Path(path_type=Path, exists=True), required=True)
@click.option(
    "--model", type=click.Path(path_type=Path), default="real_data/SmolLM2-135M-Instruct", show_default=True
)
@click.option("--work", type=click.Path(path_type=Path), default="runs/real", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="a.b=VALUE", help="Change a field of the recipe.")
def main(corpus: Path, model: Path, work: Path, overrides: tuple[str, ...]) -> None:
    """Compress and export a real LLM, and print what the parity gate measured."""
    import koffkit
    from koffkit.cli.console import RichProgress, quiet_libraries

    quiet_libraries()
    places = [f"base.model={model.resolve()}"]
    places += [f"domains.{name}.text={source(corpus, name).resolve()}" for name in DOMAINS]
    progress = RichProgress()
    with progress.live():
        run = koffkit.compress(
            RECIPE, work / "run", set=[*places, *overrides], resume=True, progress=progress
        )
        shutil.rmtree(work / "export", ignore_errors=True)
        manifest = koffkit.export(run, work / "export", progress=progress)
    click.echo(json.dumps(gate_figures(manifest) | {"mean": run.results()["mean"]}, indent=2))


if __name__ == "__main__":
    main()
