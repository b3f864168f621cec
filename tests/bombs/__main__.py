"""Drop every bomb under a limit of 3 GB of address space, and say what each took: `python -m tests.bombs`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from ..torture.world import World
from .cases import BOMBS
from .drop import command, drop


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory(prefix="bombs-") as place:
        fresh = _fresh(Path(place))
        sound = command(["evaluate", "out", "--data", "sound.txt"], fresh)
        say(f"no bomb: exit code {sound.code}, {sound.seconds:.2f} s, {sound.peak / 1e6:.0f} MB {sound.err}")
        fallouts = {}
        for name, bomb in BOMBS.items():
            fallouts[name] = fallout = drop(bomb, fresh, Path(place) / "here")
            verdict = "ok" if fallout.is_one_error else f"NOT ONE ERROR: {fallout.err[-300:]}"
            say(
                f"{name}: exit code {fallout.code}, {fallout.seconds:.2f} s, "
                f"{(fallout.peak - sound.peak) / 1e6:+.0f} MB; {verdict}"
            )
    slowest = max(fallouts, key=lambda name: fallouts[name].seconds)
    largest = max(fallouts, key=lambda name: fallouts[name].peak)
    wrong = sum(not fallout.is_one_error for fallout in fallouts.values())
    say(f"{len(BOMBS)} bombs, {wrong} not one error; slowest {slowest}, largest {largest}")
    return 1 if wrong or sound.code else 0


def _fresh(place: Path) -> Path:
    world, fresh = World(place / "world"), place / "fresh"
    for name, source in {"base": "base", "run": "fresh/runs/tiny", "out": "fresh/out"}.items():
        shutil.copytree(world.root / source, fresh / name)
    shutil.copyfile(world.root / "recipe.yaml", fresh / "recipe.yaml")
    (fresh / "sound.txt").write_text("river stone\n\n" * 40)
    return fresh


if __name__ == "__main__":
    sys.exit(main())
