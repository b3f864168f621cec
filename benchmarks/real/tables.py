"""Memories of a real LLM against pruning less, at equal loaded parameters, for several sparsities.

    python benchmarks/real/prepare.py
    python benchmarks/real/tables.py --corpus FOLDER [--model FOLDER] [--sparsity .12,.2,.3] [--trained]

FOLDER holds `culture.txt`, ..., or the same with `.xz`. A memory is a sixth of what is removed: the
backbone with all six has as many parameters as the base. By default memories are neurons and nothing is
trained; with `--trained` they train, and with them the backbone. Each sparsity is a
`koffkit ablate`, which keeps finished runs and continues interrupted ones; `summary.json` has the means over
the topics, `runs.csv` the figures of every topic.
On one core the first row takes an hour, others twenty to forty minutes, and training half an hour more. What
follows `--` goes to `koffkit ablate`, for example `-- --rows koff,prune_less,one_shot_flap`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
from smoke import source

DOMAINS = ("culture", "geography", "history", "mathematics", "science", "technology")
ROWS = "koff,prune_less"


def neurons_of(model: Path, sparsity: float) -> int:
    """Neurons a layer that six memories can have if they share what is removed."""
    from koffkit.checkpoint.spec import ModelSpec
    from koffkit.planning.neurons import parameters_of_neuron

    spec = ModelSpec.open(model)
    share = sparsity * spec.num_parameters / len(DOMAINS)
    return int(share / parameters_of_neuron(spec) / spec.num_layers)


def command(corpus: Path, model: Path, sparsity: float, work: Path, trained: bool) -> list[str]:
    """The `koffkit ablate` of one sparsity."""
    recipe = Path(__file__).with_name("trained.yaml" if trained else "topics.yaml")
    sets = [f"base.model={model.resolve()}", f"mask.global_sparsity={sparsity}"]
    sets += [f"domains.{name}.text={source(corpus, name).resolve()}" for name in DOMAINS]
    sets.append(f"memory.neurons.count={neurons_of(model, sparsity)}")
    output = work / f"{recipe.stem}-{sparsity:g}"
    changes = [part for change in sets for part in ("--set", change)]
    return [sys.executable, "-m", "koffkit", "ablate", str(recipe), *changes, "--output", str(output)]


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--corpus", type=click.Path(path_type=Path, exists=True), required=True)
@click.option(
    "--model", type=click.Path(path_type=Path), default="real_data/SmolLM2-135M-Instruct", show_default=True
)
@click.option("--sparsity", default="0.12,0.2,0.3", show_default=True, help="Separated by commas.")
@click.option("--work", type=click.Path(path_type=Path), default="runs/real", show_default=True)
@click.option("--trained", is_flag=True, help="Memories and backbone train.")
@click.argument("more", nargs=-1)
def main(corpus: Path, model: Path, sparsity: str, work: Path, trained: bool, more: tuple[str, ...]) -> None:
    """Print a table for every sparsity."""
    rest = list(more) if "--rows" in more else ["--rows", ROWS, *more]
    for level in map(float, sparsity.split(",")):
        subprocess.run([*command(corpus, model, level, work, trained), *rest], check=True)


if __name__ == "__main__":
    main()
