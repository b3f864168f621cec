"""`python -m tests.flips --flips 10000 --seed 1`: exit code 1 if one was missed."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

import transformers

from ..common import make_checkpoint, recipe_dict, write_recipe
from .campaign import Figures, campaign


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def so_far(number: int, figures: Figures) -> None:
    if number % 200 == 0:
        say(f"{number:,} flips, {len(figures.missed):,} missed")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.flips", description=__doc__)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from koffkit.exporters import export

    from koffkit.recipe.load import load_recipe
    from koffkit.stages.engine import run_recipe

    warnings.simplefilter("ignore", FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        base = make_checkpoint(root / "base")
        recipe = write_recipe(root / "recipe.yaml", recipe_dict(base, root / "data"))
        run_recipe(load_recipe(recipe), root / "run")
        export(root / "run", root / "export")
        began = time.monotonic()
        figures = campaign(root / "export", root / "run", options.flips, options.seed, so_far)
    seconds = time.monotonic() - began
    say(f"{sum(figures.tried.values()):,} flips ({dict(figures.tried)}) in {seconds:.0f} s")
    say(f"{figures.not_read:,} where loading does not look; {len(figures.missed):,} missed")
    for missed in figures.missed[:20]:
        say(f"  {missed}")
    return 1 if figures.missed else 0


if __name__ == "__main__":
    sys.exit(main())
