from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from koffkit.errors import ResourceError, UsageError
from koffkit.storage.publish import MARK, require_space, staged


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with staged(tmp_path / "deep" / "out") as partial:
        (partial / "a").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staged(tmp_path / "out") as partial:
        (partial / "a").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_that_a_library_swallows_still_counts(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "out"), contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UsageError, match="exists already"), staged(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_leftovers_of_dead_processes_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    stale, live = (tmp_path / f".out{MARK}-{pid}" for pid in (dead.pid, os.getppid()))
    for folder in (stale, live):
        folder.mkdir()
    with staged(tmp_path / "out"):
        pass
    assert not stale.exists() and live.exists()


def test_a_full_disk_is_found_before_writing(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="the export needs 1,000,000,000,000,000,000 bytes"):
        require_space(tmp_path / "not" / "yet", 10**18)
    require_space(tmp_path / "not" / "yet", 1)
