from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from koffkit.errors import UsageError
from koffkit.run.folder import RunFolder, newest_finished

from .states import run_state

STAGES = ["learn_masks", "recover"]


def rows(run: RunFolder) -> list[tuple[str, int]]:
    return [(row["stage"], row["step"]) for row in map(json.loads, run.metrics_file.read_text().splitlines())]


def test_metrics_after_the_checkpoint_are_dropped_and_half_lines_too(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for stage, steps in (("learn_masks", 3), ("recover", 4)):
        for step in range(1, steps + 1):
            run.append_metrics({"stage": stage, "step": step})
    with open(run.metrics_file, "a") as file:
        file.write('{"stage": "reco')
    run.rewind_metrics(STAGES, "recover", 2)
    assert rows(run) == [
        ("learn_masks", 1),
        ("learn_masks", 2),
        ("learn_masks", 3),
        ("recover", 1),
        ("recover", 2),
    ]
    run.rewind_metrics(STAGES, "learn_masks", 1)
    assert rows(run) == [("learn_masks", 1)]


def test_the_newest_finished_run_is_found(tmp_path: Path) -> None:
    for age, (name, state) in enumerate((("old", "finished"), ("new", "finished"), ("open", "running"))):
        run = RunFolder(tmp_path / name)
        run.path.mkdir()
        run.write(run_state(state=state))
        os.utime(run.run_file, (age, age))
    assert newest_finished(tmp_path).path.name == "new"
    with pytest.raises(UsageError, match="no finished run"):
        newest_finished(tmp_path / "new")


@pytest.mark.parametrize(
    ("content", "message"), [("{", "damaged"), ('{"koffkit": 7}', "run format 7"), (None, "not a run folder")]
)
def test_what_is_not_a_run_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        RunFolder(tmp_path).read()


def test_an_unfinished_run_says_how_to_go_on(tmp_path: Path) -> None:
    RunFolder(tmp_path).write(run_state(state="running"))
    with pytest.raises(UsageError, match=r"not finished; continue it with .*--resume"):
        RunFolder(tmp_path).require_finished()
