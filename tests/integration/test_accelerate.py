"""`accelerate launch -m koffkit compress`, as a user types it: what it learns is what one process learns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..common import recipe_dict, write_recipe
from ..processes import compress, free_port, needs_fork
from .test_processes import RATES, STAGES, require_same, rows

pytestmark = [needs_fork, pytest.mark.slow]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]


@pytest.mark.parametrize("asked", [["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]])
def test_accelerate_launches_two_processes(asked: list[str], llama: Path, tmp_path: Path) -> None:
    """On a CPU `--multi_gpu` stands for several processes; whoever asks for FSDP gets `--shard`."""
    stages = [{"learn_masks": {"max_steps": 3, "batch_size": 2, "lr": RATES}}, STAGES[-1]]
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_dict(llama, tmp_path / "data", stages=stages))
    assert compress(recipe, tmp_path / "alone", 1) == [0]
    run = tmp_path / "run"
    command = [*LAUNCH, *asked, "--main_process_port", str(free_port()), "-m", "koffkit", "compress"]
    done = subprocess.run(
        [*command, str(recipe), "--output", str(run), "--json", "--verbose"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "finished"
    assert ("each process holds about" in done.stderr) is ("--use_fsdp" in asked)
    assert [len(row["peak_memory_of_processes"]) for row in rows(run)] == [2] * 3
    require_same(run, tmp_path / "alone")
