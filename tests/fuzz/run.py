"""Many damaged inputs, one after the other: `python -m tests.fuzz.run --inputs 100000`."""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from koffkit.errors import KoffkitError

from .targets import TARGETS


@dataclass
class Report:
    """What a run of the fuzzer met.

    Args:
        slowest: seconds of processor time, and which input.
        largest: bytes by which the process grew, and for which input.
        foreign: an input and the traceback of what is no error of ours.
    """

    inputs: int = 0
    refused: int = 0
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[int, str] = (0, "")
    foreign: list[tuple[str, str]] = field(default_factory=list)


def fuzz(names: Iterable[str], inputs: int, seed: int, folder: Path, first: int = 0) -> Report:
    """Damaged inputs of each target; input `i` of a seed is always the same.

    Args:
        names: the targets.
        inputs: how many of each.
        seed: of all.
        folder: to write to.
        first: the number of the first input.
    """
    report = Report()
    for name in names:
        for number in range(first, first + inputs):
            _one(name, f"{seed}/{number}", folder, report)
    return report


def _one(name: str, key: str, folder: Path, report: Report) -> None:
    target, label = TARGETS[name], f"{name} {key}"
    data = target.make(random.Random(f"{name}/{key}"))
    before, start = _peak(), time.process_time()
    try:
        target.read(data, folder)
    except KoffkitError as error:
        report.refused += 1
        if not str(error).isprintable() and "\x1b" in str(error):
            report.foreign.append((label, f"a control character reaches the terminal: {str(error)!r}"))
    except Exception:
        report.foreign.append((label, traceback.format_exc(limit=-4)))
    report.inputs += 1
    report.slowest = max(report.slowest, (time.process_time() - start, label))
    report.largest = max(report.largest, (_peak() - before, label))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="at least so many in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, action="append", help="by default all")
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(names, -(-options.inputs // len(names)), options.seed, Path(folder))
    lines = [f"{label}:\n{text}" for label, text in report.foreign[:20]]
    lines += [
        f"{report.inputs:,} inputs of {len(names)} kinds",
        f"{report.refused:,} refused, {len(report.foreign)} ended in a foreign exception",
        f"slowest: {report.slowest[0]:.2f} s, {report.slowest[1]}",
        f"largest: {report.largest[0] / 1e6:.1f} MB, {report.largest[1]}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.exit(bool(report.foreign))


if __name__ == "__main__":
    main()
