"""Interrupted and resumed: masks and memories are bit-identical to those of the uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..common import recipe_dict, write_recipe
from ..conftest import Koffkit

STEPS = {"learn_masks": 40, "recover": 30}
RATES = {"lora": 2e-2, "kv": 5e-2, "gates": 0.3}


@pytest.fixture(scope="module")
def recipe(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resume")
    stages = [
        {name: {"max_steps": steps, "batch_size": 2, "lr": RATES, "warmup_steps": 3}}
        for name, steps in STEPS.items()
    ]
    stages.append({"evaluate": {"batch_size": 4, "max_tokens": 64}})
    return write_recipe(
        root / "recipe.yaml", recipe_dict(llama, root / "data", stages=stages, train={"checkpoint_every": 7})
    )


def command(recipe: Path, run: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "koffkit", "compress", str(recipe), "--output", str(run), *more]


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(recipe, run), check=True, capture_output=True)
    return run


def learned(run: Path) -> dict[str, bytes]:
    files = [run / "masks.safetensors", *sorted((run / "memories").rglob("*.*"))]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def losses(run: Path) -> list[tuple[str, int, float]]:
    return [
        (row["stage"], row["step"], row["kl"])
        for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    ]


def steps_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def stop_at(recipe: Path, run: Path, rows: int, number: int, *more: str) -> int:
    """Start, wait until so many steps are done, send the signal; returns the exit code."""
    process = subprocess.Popen(
        command(recipe, run, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while steps_done(run) < rows and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    return process.wait(timeout=120)


def interrupt(recipe: Path, run: Path) -> None:
    assert stop_at(recipe, run, 11, signal.SIGINT) == 130
    assert stop_at(recipe, run, 50, signal.SIGINT, "--resume") == 130


def kill(recipe: Path, run: Path) -> None:
    assert stop_at(recipe, run, 17, signal.SIGKILL) == -9
    assert (
        stop_at(recipe, run, 45, signal.SIGKILL, "--resume") == -9
    )  # before the first checkpoint of recover
    assert stop_at(recipe, run, 58, signal.SIGKILL, "--resume") == -9


def kill_before_the_first_checkpoint(recipe: Path, run: Path) -> None:
    assert stop_at(recipe, run, 2, signal.SIGKILL) == -9


@pytest.mark.parametrize("break_off", [interrupt, kill, kill_before_the_first_checkpoint])
def test_resumed_equals_uninterrupted(
    break_off: Callable[[Path, Path], None], recipe: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    break_off(recipe, run)
    assert json.loads((run / "run.json").read_text())["state"] == "running"
    done = subprocess.run(command(recipe, run, "--resume", "--json"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert learned(run) == learned(whole)
    assert losses(run) == losses(whole)
    assert json.loads(done.stdout)["results"] == json.loads((whole / "run.json").read_text())["results"]


def test_an_interrupted_run_says_how_to_go_on_and_cannot_be_exported(
    recipe: Path, tmp_path: Path, koffkit: Koffkit
) -> None:
    run = tmp_path / "run"
    stop_at(recipe, run, 9, signal.SIGINT)
    again = koffkit("compress", recipe, "--output", run)
    assert again.code == 2 and "there is a run already (running); add --resume" in again.err
    export = koffkit("export", run, "--format", "hf", "--output", tmp_path / "out")
    assert export.code == 2
    assert "not finished" in export.err
    assert not (tmp_path / "out").exists()
    other = koffkit("compress", recipe, "--output", run, "--resume", "--set", "seed=5")
    assert other.code == 2 and "cannot resume, the recipe changed in seed" in other.err


def test_a_finished_run_is_left_alone(recipe: Path, whole: Path, koffkit: Koffkit) -> None:
    before = learned(whole)
    done = koffkit("compress", recipe, "--output", whole, "--resume")
    assert done.code == 0
    assert "already finished" in done.err
    assert learned(whole) == before


def test_an_interrupt_during_evaluate_loses_nothing(
    recipe: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from koffkit.errors import Interrupted
    from koffkit.recipe.load import load_recipe
    from koffkit.stages import evaluate
    from koffkit.stages.engine import run_recipe

    run, real = tmp_path / "run", evaluate._evaluate_domain

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "_evaluate_domain", interrupted)
        with pytest.raises(Interrupted, match="interrupted in evaluate"):
            run_recipe(load_recipe(recipe), run)
    before = losses(run)
    state = run_recipe(load_recipe(recipe), run, resume=True)
    assert learned(run) == learned(whole) and losses(run) == losses(whole) == before
    assert state.results == json.loads((whole / "run.json").read_text())["results"]
