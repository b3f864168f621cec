"""Neuron memories of a real LLM against pruning less, at equal loaded parameters, for several sparsities.

    python benchmarks/real/prepare.py
    python benchmarks/real/tables.py --corpus FOLDER [--model FOLDER] [--sparsity .12,.2,.3]

FOLDER holds `culture.txt`, ..., or the same with `.xz`. A memory is a sixth of what is removed: the
backbone with all six is as large as the base. Each sparsity is a `koffkit ablate`, which keeps finished
runs and continues interrupted ones; `summary.json` has every figure. On one core the first row takes an hour,
others twenty to forty minutes. What follows `--` goes to `koffkit ablate`, for example `-- --rows
koff,prune_less,one_shot_flap`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
from smoke import source

RECIPE = Path(__file__).with_name("topics.yaml")
DOMAINS = ("culture", "geography", "history", "mathematics", "science", "technology")
ROWS = "koff,prune_less"


def neurons_of(model: Path, sparsity: float) -> int:
    """Neurons a layer that six memories can have if they share what is removed."""
    from koffkit.checkpoint.spec import ModelSpec
    from koffkit.planning.neurons import parameters_of_neuron

    spec = ModelSpec.open(model)
    share = sparsity * spec.num_parameters / len(DOMAINS)
    return int(share / parameters_of_neuron(spec) / spec.num_layers)


def command(corpus: Path, model: Path, sparsity: float, work: Path) -> list[str]:
    """The `koffkit ablate` of one sparsity."""
    changes = {
        "base.model": model.resolve(),
        "mask.global_sparsity": sparsity,
        "memory.neurons.count": neurons_of(model, sparsity),
        **{f"domains.{name}.text": source(corpus, name).resolve() for name in DOMAINS},
    }
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    output = work / f"topics-{sparsity:g}"
    return [sys.executable, "-m", "koffkit", "ablate", str(RECIPE), *sets, "--output", str(output)]


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--corpus", type=click.Path(path_type=Path, exists=True), required=True)
@click.option(
    "--model", type=click.Path(path_type=Path), default="real_data/SmolLM2-135M-Instruct", show_default=True
)
@click.option("--sparsity", default="0.12,0.2,0.3", show_default=True, help="Separated by commas.")
@click.option("--work", type=click.Path(path_type=Path), default="runs/real", show_default=True)
@click.argument("more", nargs=-1)
def main(corpus: Path, model: Path, sparsity: str, work: Path, more: tuple[str, ...]) -> None:
    """Print a table for every sparsity."""
    rest = list(more) if "--rows" in more else ["--rows", ROWS, *more]
    for level in map(float, sparsity.split(",")):
        subprocess.run([*command(corpus, model, level, work), *rest], check=True)


if __name__ == "__main__":
    main()
