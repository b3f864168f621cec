"""Two writers at once: the same command twice, started at the same moment on the same folder."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .world import World, content, koffkit, litter, start

RACES = ("compress", "export", "add")
STAGGER = 0.05
"""Seconds that one of the two may start later, at most."""
REFUSED = re.compile(r"process \d+ on ")
LATE = ("there is a run already", "exists already", "there is a memory")
"""What the second writer is told when the first one has finished before it looks."""


@dataclass
class Races:
    """What came of racing one command against itself."""

    rounds: int = 0
    refused: int = 0
    late: int = 0
    findings: list[str] = field(default_factory=list)


def race(
    world: World, name: str, rounds: int, draw: random.Random, told: Callable[[int], None] = lambda _: None
) -> Races:
    """Start a command twice at once, so many times; each time one must win and lose nothing, and the other
    end with exit code 2 and the process that is at it.

    Args:
        world: every round works on a copy of it.
        name: `compress`, `export` or `add`.
        rounds: how many.
        draw: by how much the two starts differ.
        told: called with the number of every round that is done.
    """
    folder, command = world.root / "race", world.commands[name]
    world.copy(folder)
    alone, _ = koffkit(command.arguments, folder)
    if alone.code:
        raise RuntimeError(f"{name}: {alone.err}")
    expected, report = content(folder, command.results), Races()
    for number in range(rounds):
        world.copy(folder)
        moment = time.monotonic() + 0.1
        delays = draw.sample((0.0, draw.uniform(0, STAGGER)), 2)
        both = [start(command.arguments, folder, at=moment + delay) for delay in delays]
        ended = [running.wait()[0] for running in both]
        report.rounds += 1
        _judge(f"{name}, round {number}", ended, report)
        if content(folder, command.results) != expected:
            report.findings.append(
                f"{name}, round {number}: the result is another one than that of one writer"
            )
        if left := litter(folder):
            report.findings.append(f"{name}, round {number}: leaves {', '.join(left[:5])}")
        told(number + 1)
    return report


def _judge(label: str, ended: list[Any], report: Races) -> None:
    """One of the two has won, and the other was told why it has not."""
    for one in ended:
        if "Traceback" in one.err:
            report.findings.append(f"{label}: a traceback: {one.err.strip()[-300:]}")
    if sorted(one.code for one in ended) != [0, 2]:
        codes = ", ".join(f"{one.code} ({one.err.strip()[-200:]})" for one in ended)
        report.findings.append(f"{label}: exit codes {codes}")
        return
    loser = next(one for one in ended if one.code == 2)
    if REFUSED.search(loser.err):
        report.refused += 1
    elif any(text in loser.err for text in LATE):
        report.late += 1
    else:
        report.findings.append(f"{label}: refused without the process: {loser.err.strip()[-300:]}")
