"""`--num-processes` calls torch's launcher and ends as the processes do."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch.distributed.run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from koffkit.errors import PeerLost
from koffkit.parallel import place
from koffkit.parallel.launch import launch

from ...conftest import Koffkit


def failed(*codes: int) -> ChildFailedError:
    failures = {}
    for rank, code in enumerate(codes):
        failure = ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file="none")
        failure.timestamp = rank
        failures[rank] = failure
    return ChildFailedError("koffkit", failures)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces the launcher; set `ends_with` to an error for it to raise."""

    class Run:
        ends_with: Exception | None = None
        settings: Any = None
        own = False

        def __call__(self, settings: Any) -> None:
            self.settings, self.own = settings, place.by_own_launcher()
            if self.ends_with is not None:
                raise self.ends_with

    fake = Run()
    monkeypatch.setattr(torch.distributed.run, "run", fake)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return fake


def test_the_command_runs_in_so_many_processes(run: Any) -> None:
    assert launch(3, ["compress", "quickstart", "--output", "a b"]) == 0
    assert run.settings.nproc_per_node == "3" and run.settings.module and run.own
    assert run.settings.training_script == "koffkit"
    assert run.settings.training_script_args == ["compress", "quickstart", "--output", "a b"]
    assert not place.by_own_launcher()


@pytest.mark.parametrize(
    ("error", "code"),
    [(failed(3, 5), 3), (failed(130), 130), (SignalException("", signal.SIGINT), 130)],
)
def test_the_exit_code_is_that_of_the_first_that_failed(error: Exception, code: int, run: Any) -> None:
    run.ends_with = error
    assert launch(2, ["compress"]) == code


def test_a_killed_process_is_one_error(run: Any) -> None:
    run.ends_with = failed(-9)
    with pytest.raises(PeerLost, match=r"process 0 of 2 was killed by SIGKILL .* --resume") as caught:
        launch(2, ["compress"])
    assert caught.value.exit_code == 5
    assert place.OWN not in os.environ


def test_a_wrong_recipe_starts_nothing(run: Any, koffkit: Koffkit) -> None:
    done = koffkit("compress", "no-such-recipe", "--num-processes", "2")
    assert done.code == 2 and run.settings is None


def test_contradictions_are_refused(
    run: Any, koffkit: Koffkit, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = koffkit("compress", "quickstart", "--shard")
    assert alone.code == 2 and "--shard divides the model among processes" in alone.err
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    three = koffkit("compress", "quickstart", "--num-processes", "3")
    assert three.code == 2 and "--num-processes 3: the launcher started 2" in three.err
    other = koffkit("recipe", "list")
    assert other.code == 2 and "koffkit recipe works in one process" in other.err


def test_only_the_first_process_speaks(
    koffkit: Koffkit, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from koffkit import cli

    waited: list[float] = []
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    plan = koffkit("compress", "quickstart", "--dry-run", "--log-file", tmp_path / "log")
    assert (plan.code, plan.out, plan.err) == (0, "", "") and not (tmp_path / "log").exists()
    wrong = koffkit("compress", "no-such-recipe")
    assert wrong.code == 2 and wrong.err.startswith("Error: process 1: ") and waited == [cli.SILENCE]
