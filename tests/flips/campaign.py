"""Flip one bit of an export or a run at a time, and ask who sees it."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from koffkit import KoffModel
from koffkit.errors import KoffkitError
from koffkit.run.finished import FinishedRun
from koffkit.runtime.verify import verify_export, verify_run

UNREAD_OF_RUN = ("data/", "metrics.jsonl")
"""Nothing of a finished run but `verify` reads these again."""


@dataclass
class Figures:
    """Args: tried: flips, by place. missed: what saw nothing, and should have. not_read: flips that loading
    need not see, and did not."""

    tried: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    not_read: int = 0


def refuses(action: Callable[[], object]) -> bool:
    """Whether it ends in an error of ours; any other one ends the campaign."""
    try:
        return action() is False
    except KoffkitError:
        return True


def campaign(
    export: Path, run: Path, flips: int, seed: int, say: Callable[[int, Figures], None] = lambda *_: None
) -> Figures:
    """Args: export, run: may be changed; are as before in the end. say: told the figures so far."""
    draw, figures = random.Random(seed), Figures()
    places = [(root, path) for root in (export, run) for path in sorted(root.rglob("*")) if counts(path)]
    by_size = [path.stat().st_size for _, path in places]
    for number in range(flips):  # as many in small files as in large ones, and as many in every kilobyte
        root, path = draw.choice(places) if number % 2 else draw.choices(places, by_size)[0]
        bit = draw.randrange(8 * path.stat().st_size)
        figures.tried[root.name] += 1
        with_flip(path, bit, lambda root=root, path=path, bit=bit: ask(figures, export, root, path, bit))
        say(number + 1, figures)
    return figures


def counts(path: Path) -> bool:
    """Cards may be edited, and no digest covers them."""
    return path.is_file() and path.stat().st_size > 0 and path.name != "README.md"


def with_flip(path: Path, bit: int, action: Callable[[], None]) -> None:
    """Carry out `action` while one bit is the other way round; size and times of the file stay."""
    status = path.stat()
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        path.write_bytes(damaged)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        action()
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def ask(figures: Figures, export: Path, root: Path, path: Path, bit: int) -> None:
    """Let everything that reads the file look at it."""
    name = path.relative_to(root).as_posix()
    if root == export:
        verified, loads = (lambda: verify_export(root)["ok"]), (lambda: KoffModel.from_pretrained(root))
        may_miss = name.startswith("backbone/") and path.suffix == ".safetensors"  # between the samples
        if may_miss and not refuses(lambda: KoffModel.from_pretrained(root, verify=True)):
            figures.missed.append(f"loading with verify=True: {name} bit {bit}")
    else:
        verified, loads = (lambda: verify_run(root)["ok"]), (lambda: FinishedRun.open(root))
        may_miss = name.startswith(UNREAD_OF_RUN)
    if not refuses(verified):
        figures.missed.append(f"verify: {root.name}/{name} bit {bit}")
    if not refuses(loads):
        figures.not_read += may_miss
        if not may_miss:
            figures.missed.append(f"loading: {root.name}/{name} bit {bit}")
