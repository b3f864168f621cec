"""Which of several processes this one is, as the launcher said; known without torch."""

from __future__ import annotations

import os

from ..errors import UsageError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""What `torchrun` and `accelerate launch` tell every process that they start."""
OWN = "KOFFKIT_LAUNCHED"
"""Set by `koffkit compress --num-processes`, which says itself what became of its processes."""


def rank() -> int:
    """The number of this process, from 0; process 0 leads: it alone writes and speaks."""
    return _told()[0]


def num_processes() -> int:
    """How many processes the launcher started; 1 without one."""
    return _told()[1]


def _told() -> tuple[int, int]:
    """Rank and number of processes.

    Raises:
        UsageError: the launcher's variables are no such numbers.
    """
    if any(name not in os.environ for name in NAMES):
        return 0, 1
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise UsageError(
            f"RANK={rank!r} of WORLD_SIZE={size!r}: no such process; start with torchrun or accelerate "
            "launch, or unset both variables."
        )
    return int(rank), int(size)


def by_own_launcher() -> bool:
    """Whether `koffkit compress --num-processes` started this process."""
    return OWN in os.environ


def left_alone() -> bool:
    """Whether `accelerate launch` was asked for several processes and started this one alone, which it does
    on a CPU without `--multi_gpu` and `--use_fsdp`, without a word."""
    asked = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    return asked and "RANK" not in os.environ


def launcher_says(name: str) -> bool:
    """Whether a variable of accelerate's launcher is set: it was asked for what the variable stands for."""
    return os.environ.get(name, "").lower() in ("1", "true")
