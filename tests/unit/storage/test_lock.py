from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from koffkit.errors import UsageError
from koffkit.storage import lock
from koffkit.storage.lock import LOCK, claim, is_own, lock_beside, writing_in

HOLD = """
import sys
from pathlib import Path
from koffkit.storage import lock
with getattr(lock, sys.argv[1])(Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.05)


@contextmanager
def holder(kind: str, place: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, kind, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.communicate("")


@pytest.mark.parametrize("kind", ["writing_in", "claim"])
def test_the_second_writer_is_told_who_the_first_is(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "run"
    with holder(kind, place) as first:
        says = rf"{re.escape(str(place))}: process {first.pid} on .+ is writing it"
        with pytest.raises(UsageError, match=says), getattr(lock, kind)(place):
            pass
    with getattr(lock, kind)(place):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["writing_in", "claim"])
def test_a_dead_holder_never_blocks(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "run"
    with holder(kind, place) as first:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        file = place / LOCK if kind == "writing_in" else lock_beside(place)
        assert is_own(file) and file.is_file()
        with getattr(lock, kind)(place):
            pass
    assert not file.exists()


def test_two_names_in_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    with claim(tmp_path / "a"), claim(tmp_path / "b"):
        assert len(list(tmp_path.iterdir())) == 2


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "memories").mkdir(parents=True)
    mine = [run / "notes.txt", run / "partial-1", run / ".hidden"]
    for path in mine:
        path.write_text("x")
    (run / ".run.json.koffkit-partial-7").write_text("half")
    (run / "memories" / ".old.json.partial-7").write_text("half")  # as earlier versions named them
    with writing_in(run):
        assert sorted(path.name for path in run.iterdir() if not is_own(path)) == sorted(
            [*(path.name for path in mine), "memories"]
        )
        assert list((run / "memories").iterdir()) == []


def test_a_folder_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe"), writing_in(tmp_path / "run"):
        raise UsageError("no recipe")
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A worker that outlives its killed parent."""
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        with claim(tmp_path / "out"):
            child = os.fork()
            if child == 0:
                signal.pause()
            os.write(write, f"{child}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    child = int(os.read(read, 32))
    try:
        with claim(tmp_path / "out"):
            assert lock_beside(tmp_path / "out").is_file()
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(read)
        os.close(write)
