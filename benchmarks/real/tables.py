"""Tables of a real LLM, for several sparsities.

    python benchmarks/real/prepare.py
    python benchmarks/real/tables.py --corpus FOLDER [--model FOLDER] [--sparsity .12,.2,.3] [--recipe NAME]
                                     [--retention FILE]

FOLDER holds `culture.txt`, ..., or the same with `.xz`. NAME is one of the recipes beside this file:

- `topics` (the default): memories of neurons against pruning less, at equal loaded parameters; nothing is
  trained. A memory is a sixth of what is removed: the backbone with all six is as large as the base.
- `trained`: the same, and then memories and backbone train.
- `parts`: trained memories of that size made of neurons, LoRA and KV, and of some of them.
- `selectors`: the mask of every one-shot selector, with the same LoRA recovery of two topics, and (backbone
  alone) without.
- `components`: the paper's Table 2 with two topics: masks and memories of LoRA and KV learned together,
  without one part at a time.

FILE of `--retention` is text that belongs to no topic (`retention.py` makes one); only `components` cannot do
without.

Each sparsity is a `koffkit ablate`, which keeps finished runs and continues interrupted ones; `runs.csv` has
every figure by topic. On one core a run takes a quarter of an hour to an hour. What follows `--` goes to
`koffkit ablate`, for example `-- --rows koff,prune_less --set train.float32_matmul_precision=medium`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
from smoke import source

DOMAINS = ("culture", "geography", "history", "mathematics", "science", "technology")
TWO = ("history", "science")
SELECTORS = ("sensitivity", "fisher", "activation", "flap", "taylor", "magnitude", "depth")
ROWS = {
    "topics": "koff,prune_less",
    "trained": "koff,prune_less",
    "parts": "koff,prune_less,equal_lora_kv,equal_neurons_lora,equal_neurons",
    "selectors": ",".join(f"one_shot_{name}" for name in SELECTORS),
    "components": "koff,lora_only,kv_only,pruning_only,prune_then_recover,all_layers,no_retention",
}
OF_TWO = ("selectors", "components")
"""Recipes of two topics, whose memories have no neurons."""
OTHER_PARTS = 18
"""Neurons a layer that weigh as much as the LoRA and KV memory of `parts.yaml`."""


def neurons_of(model: Path, sparsity: float) -> int:
    """Neurons a layer that six memories can have if they share what is removed."""
    from koffkit.checkpoint.spec import ModelSpec
    from koffkit.planning.neurons import parameters_of_neuron

    spec = ModelSpec.open(model)
    share = sparsity * spec.num_parameters / len(DOMAINS)
    return int(share / parameters_of_neuron(spec) / spec.num_layers)


def command(
    corpus: Path, model: Path, sparsity: float, work: Path, name: str, retention: Path | None
) -> list[str]:
    """The `koffkit ablate` of one sparsity."""
    recipe = Path(__file__).with_name(f"{name}.yaml")
    sets = [f"base.model={model.resolve()}", f"mask.global_sparsity={sparsity}"]
    domains = TWO if name in OF_TWO else DOMAINS
    sets += [f"domains.{domain}.text={source(corpus, domain).resolve()}" for domain in domains]
    if retention is not None:
        sets.append(f"retention.text={retention.resolve()}")
    if name not in OF_TWO:
        count = neurons_of(model, sparsity) - (OTHER_PARTS if name == "parts" else 0)
        sets.append(f"memory.neurons.count={count}")
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
@click.option("--recipe", type=click.Choice(list(ROWS)), default="topics", show_default=True)
@click.option("--retention", type=click.Path(path_type=Path, exists=True), help="Text of no topic.")
@click.argument("more", nargs=-1)
def main(
    corpus: Path,
    model: Path,
    sparsity: str,
    work: Path,
    recipe: str,
    retention: Path | None,
    more: tuple[str, ...],
) -> None:
    """Print a table for every sparsity."""
    if retention is None and recipe == "components":
        raise click.UsageError("--recipe components cannot do without --retention FILE.")
    rest = list(more) if "--rows" in more else ["--rows", ROWS[recipe], *more]
    for level in map(float, sparsity.split(",")):
        subprocess.run([*command(corpus, model, level, work, recipe, retention), *rest], check=True)


if __name__ == "__main__":
    main()
