"""Runs in several processes on this machine, forked from the test, so that nothing is imported again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LONGEST = 120.0
"""Seconds that a test waits for its processes."""


@dataclass(frozen=True)
class Blow:
    """A signal that one process gets before one of its steps.

    Args:
        step: after so many steps of this process.
        number: of the signal.
        rank: of the process.
    """

    step: int
    number: int
    rank: int = 1


def compress(
    recipe: Path,
    run: Path,
    processes: int,
    *,
    resume: bool = False,
    shard: bool = False,
    blow: Blow | None = None,
) -> list[int]:
    """Run a recipe in so many processes; returns their exit codes by rank, negative for signals."""
    fork = multiprocessing.get_context("fork")
    port = free_port()
    started = [
        fork.Process(target=_child, args=(recipe, run, rank, processes, port, resume, shard, blow))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    deadline = time.monotonic() + LONGEST
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return [-1000 if code is None else code for code in codes]


def _child(
    recipe: Path,
    run: Path,
    rank: int,
    processes: int,
    port: int,
    resume: bool,
    shard: bool,
    blow: Blow | None,
) -> None:
    from koffkit.errors import KoffkitError
    from koffkit.progress import Silent
    from koffkit.recipe.load import load_recipe
    from koffkit.stages.engine import run_recipe

    class Heard(Silent):
        def message(self, text: str) -> None:
            with open(run.parent / "messages", "a") as file:
                file.write(f"{rank}: {text}\n")

    if processes > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ["OMP_NUM_THREADS"] = "1"
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(rank)}
    if blow is not None and blow.rank == rank:
        _strike(blow)
    try:
        run_recipe(load_recipe(recipe), run, resume=resume, progress=Heard(), shard=shard)
    except KoffkitError as error:
        (run.parent / f"error.{rank}").write_text(str(error))
        os._exit(error.exit_code)
    os._exit(0)


def _strike(blow: Blow) -> None:
    from koffkit.training.loop import DistillationLoop

    done, real = 0, DistillationLoop._step

    def step(loop: Any, number: int) -> Any:
        nonlocal done
        if done == blow.step:
            os.kill(os.getpid(), blow.number)
        done += 1
        return real(loop, number)

    DistillationLoop._step = step  # type: ignore[method-assign]


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
INTERRUPTED = 128 + signal.SIGINT
