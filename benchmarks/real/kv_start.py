"""Where the KV memory of a real LLM begins, after training: the domain's text against random numbers.

    python benchmarks/real/prepare.py
    python benchmarks/real/kv_start.py --corpus FOLDER [--model FOLDER] [--tokens 64] [--seeds 0,1,2]

FOLDER holds `history.txt` and `science.txt`, or the same with `.xz`. Each number of memory tokens is a
`koffkit ablate`, which keeps finished runs and continues interrupted ones; its `summary.json` has mean and
standard deviation over the seeds. What follows `--` goes to `koffkit ablate`. A run takes eight minutes
on one core.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
from smoke import DOMAINS, source

RECIPE = Path(__file__).with_name("kv_start.yaml")


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--corpus", type=click.Path(path_type=Path, exists=True), required=True)
@click.option(
    "--model", type=click.Path(path_type=Path), default="real_data/SmolLM2-135M-Instruct", show_default=True
)
@click.option("--tokens", default="64", show_default=True, help="Memory tokens, separated by commas.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Separated by commas.")
@click.option("--work", type=click.Path(path_type=Path), default="runs/real", show_default=True)
@click.argument("more", nargs=-1)
def main(corpus: Path, model: Path, tokens: str, seeds: str, work: Path, more: tuple[str, ...]) -> None:
    """Print a table for every number of memory tokens."""
    places = [f"base.model={model.resolve()}"]
    places += [f"domains.{name}.text={source(corpus, name).resolve()}" for name in DOMAINS]
    for count in map(int, tokens.split(",")):
        sets = [part for place in [*places, f"memory.kv.tokens={count}"] for part in ("--set", place)]
        output = work / f"kv-start-{count}"
        program = [sys.executable, "-m", "koffkit", "ablate", str(RECIPE), *sets, "--output", str(output)]
        subprocess.run([*program, "--rows", "koff,random_start", "--seeds", seeds, *more], check=True)


if __name__ == "__main__":
    main()
