"""One command, broken once and done again."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from .faults import FAULTS, KILL, NEED_NO_SPACE, Faults
from .world import Command, World, content, koffkit, litter

REFUSED = (2, 3, 4, 5)


@dataclass(frozen=True)
class Point:
    """The `at`-th operation of a command, and what happens there."""

    at: int
    kind: str
    place: str
    fault: str


@dataclass
class Report:
    """What came of the points tried on one command."""

    operations: int
    possible: int
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    half_published: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    traceback: list[str] = field(default_factory=list)
    littered: list[str] = field(default_factory=list)

    @property
    def findings(self) -> list[str]:
        return self.lost + self.half_published + self.different + self.traceback + self.littered


def torture(world: World, command: Command, num_points: int | None, draw: random.Random) -> Report:
    """Break a command at some of its points, or (None) at all."""
    folder = world.root / "work"
    before = content(world.copy(folder), command.results)
    ended, seen = koffkit(command.arguments, folder, Faults(folder))
    if ended.code:
        raise RuntimeError(f"{command.name}: {ended.err}")
    after = content(folder, command.results)
    points = [
        Point(at, kind, place, fault)
        for (at, (kind, place)), fault in product(enumerate(seen), FAULTS)
        if not (fault == "ENOSPC" and kind in NEED_NO_SPACE)
    ]
    report = Report(len(seen), len(points))
    if num_points is not None and num_points < len(points):
        points = draw.sample(points, num_points)
    for point in points:
        _try(world.copy(folder), command, point, before, after, report)
        report.tried += 1
    return report


def _try(folder: Path, command: Command, point: Point, before: Any, after: Any, report: Report) -> None:
    name = f"{command.name}: {point.fault} at {point.kind} {point.place} (number {point.at})"
    ended, _ = koffkit(command.arguments, folder, Faults(folder, point.at, point.fault))
    expected = (-9,) if point.fault == KILL else (0, *REFUSED)
    if ended.code not in expected or "Traceback" in ended.err:
        report.traceback.append(f"{name}: exit code {ended.code}: {ended.err.strip()[-300:]}")
    if command.published is not None and not _whole(folder, command.published, before, after):
        report.half_published.append(name)
    again, _ = koffkit(command.again, folder)
    now = content(folder, command.results)
    if again.code not in (0, 2) or "Traceback" in again.err or (again.code == 2 and now != after):
        report.lost.append(f"{name}: then exit code {again.code}: {again.err.strip()[-300:]}")
    elif now != after:
        names = sorted(path for path in {*now, *after} if now.get(path) != after.get(path))
        report.different.append(f"{name}: {', '.join(names[:5])}")
    if left := litter(folder):
        report.littered.append(f"{name}: leaves {', '.join(left[:5])}")


def _whole(folder: Path, published: str, before: Any, after: Any) -> bool:
    """The folder is as it was before, or as it is afterwards."""

    def below(files: Any) -> Any:
        return {path: value for path, value in files.items() if path.startswith(f"{published}/")}

    return content(folder, (published,)) in (below(before), below(after))
