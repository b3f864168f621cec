from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from koffkit.run.folder import RunFolder
from koffkit.run.live import live_state
from koffkit.storage.lock import writing_in

from .states import run_state

STAGES = [
    {"learn_masks": {"max_steps": 10}, "recover": None},
    {"learn_masks": None, "recover": {"max_steps": 20}},
    {"route": {"epochs": 1}},
]
RECIPE = {"name": "tiny", "domains": {"north": {"text": "a.txt"}}, "stages": STAGES}
STATE = run_state(
    recipe=RECIPE,
    stages=[{"name": "learn_masks", "state": "running"}, {"name": "recover", "state": "pending"}],
)


def row(step: int, **more: object) -> str:
    fixed = {"stage": "learn_masks", "step": step, "kl": 0.1 * step, "sparsity": 0.3, "tokens": 100}
    return json.dumps({**fixed, "tokens_per_second": 50.0, "expected_sparsity": 0.2, **more}) + "\n"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_before_the_first_step(run: RunFolder) -> None:
    assert live_state(run, STATE) == {"writer": None, "stage": "learn_masks"}


def test_the_last_step_and_the_time_that_is_left(run: RunFolder) -> None:
    run.metrics_file.write_text(row(1) + row(2) + row(3) + '{"stage": "learn_m')
    live = live_state(run, STATE)
    assert (live["step"], live["steps"], live["stage_of_step"]) == (3, 10, "learn_masks")
    assert live["kl"] == pytest.approx(0.2)
    assert (live["sparsity"], live["expected_sparsity"]) == (0.3, 0.2)
    assert live["seconds_left"] == 2.0 * (7 + 20)
    assert live["seconds_since"] < 60


def test_a_pause_between_two_commands_is_not_taken_for_slowness(run: RunFolder) -> None:
    times = [0.0, 1.0, 2.0, 5000.0, 5001.0]
    run.metrics_file.write_text("".join(row(step, wall_time=time) for step, time in enumerate(times, 1)))
    assert live_state(run, STATE)["seconds_left"] == 1.0 * (5 + 20)


def test_only_the_end_of_long_metrics_is_read(run: RunFolder) -> None:
    run.metrics_file.write_bytes(b"\xff" * (1 << 20) + b"\n" + row(4).encode())
    assert live_state(run, STATE)["step"] == 4


def test_who_works_on_it(run: RunFolder) -> None:
    with writing_in(run.path):
        assert f"process {os.getpid()} on " in live_state(run, STATE)["writer"]
    assert live_state(run, STATE)["writer"] is None
