"""Dropping a bomb: the command that meets it, in a child that may take up 3 GB of address space."""

from __future__ import annotations

import resource
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from ..torture.world import start
from .cases import Build

LIMIT = 3 << 30
"""Bytes of address space, as after `ulimit -v 3145728`."""
PATIENCE = 60.0
"""Seconds after which a command that hangs is killed."""
REFUSED = (2, 3, 4, 5)


@dataclass(frozen=True)
class Fallout:
    """How a command ended.

    Args:
        code: its exit code; a signal is negative.
        err: what it wrote to stderr.
        seconds: of the processor.
        peak: the most memory that it had, in bytes.
    """

    code: int
    err: str
    seconds: float
    peak: int

    @property
    def is_one_error(self) -> bool:
        """Whether it ended as the contract says."""
        return self.code in REFUSED and "Traceback" not in self.err and "Error: " in self.err


def command(arguments: list[str], folder: Path) -> Fallout:
    """The command line in `folder`, under the limit."""
    running = start(arguments, folder, at=time.monotonic() + 0.05)
    resource.prlimit(running.child, resource.RLIMIT_AS, (LIMIT, LIMIT))
    resource.prlimit(running.child, resource.RLIMIT_CPU, (int(PATIENCE), int(PATIENCE)))
    ended, _ = running.wait(patience=PATIENCE)
    return Fallout(ended.code, ended.err, ended.seconds, ended.peak)


def drop(bomb: Build, fresh: Path, folder: Path) -> Fallout:
    """A bomb in a copy of the folder `fresh`.

    Args:
        bomb: writes its file and says which command meets it.
        fresh: holds `base`, `run`, `out` and `recipe.yaml`.
        folder: the copy, which is replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(fresh, folder)
    try:
        return command(bomb(folder), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
