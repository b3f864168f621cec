"""`make torture`: every operation on files (open, write, fsync, rename, unlink, mkdir, close) of compress,
export, memory add, collect, remove and compact fails or is where the process is killed; then the same command
again.

    python -m tests.torture [--seed N] [--points N | --all] [--commands compress,export,...]
    python -m tests.torture --writers 50
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

from .trial import torture
from .world import World
from .writers import RACES, race


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--points", type=int, default=100, help="points of each command, drawn at random")
    parser.add_argument("--all", action="store_true", help="every point of each command")
    parser.add_argument("--commands", default="compress,export,add,collect,remove,compact")
    parser.add_argument("--writers", type=int, help="instead: rounds of two writers at once")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    return _break(options) if options.writers is None else _race(options)


def _race(options: argparse.Namespace) -> int:
    findings: list[str] = []
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        world = World(Path(folder) / "world")
        for name in RACES:
            began = time.monotonic()
            report = race(world, name, options.writers, random.Random(f"{options.seed}/{name}"))
            say(
                f"{name}: {report.rounds} rounds of two writers; the second refused with the process of the "
                f"first {report.refused} times, {report.late} times after the first had finished; "
                f"{len(report.findings)} findings; {time.monotonic() - began:.0f} s"
            )
            findings += report.findings
    say("\n".join(findings) or "no traceback, nothing lost")
    return 1 if findings else 0


def _break(options: argparse.Namespace) -> int:
    findings: list[str] = []
    tried = lost = half = different = 0
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        world = World(Path(folder) / "world")
        for name in options.commands.split(","):
            began = time.monotonic()
            draw = random.Random(f"{options.seed}/{name}")
            report = torture(world, world.commands[name], None if options.all else options.points, draw)
            say(
                f"{name}: {report.operations} operations, {report.tried} of {report.possible} points tried, "
                f"{len(report.lost)} lost, {len(report.half_published)} half published, "
                f"{len(report.different)} resumed to something else, {len(report.traceback)} tracebacks or "
                f"wrong exit codes, {len(report.littered)} with litter; "
                f"{time.monotonic() - began:.0f} s",
            )
            tried += report.tried
            lost += len(report.lost)
            half += len(report.half_published)
            different += len(report.different)
            findings += report.findings
    say("\n".join(findings))
    say(f"{tried} points tried, {lost} lost, {half} half published, {different} resumes not identical")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
