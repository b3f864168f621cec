from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from koffkit.errors import ResourceError, UsageError
from koffkit.storage import publish
from koffkit.storage.lock import claim
from koffkit.storage.partial import ASIDE, MARK
from koffkit.storage.publish import move_folder, replacing, require_free, require_space, staged


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


def test_leftovers_of_dead_processes_go_and_what_is_being_written_stays(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    stale, other, live = (tmp_path / f".{name}{MARK}-{dead.pid}" for name in ("out", "old", "live"))
    for folder in (stale, other, live):
        folder.mkdir()
    with claim(tmp_path / "live"):
        live.mkdir(exist_ok=True)
        with staged(tmp_path / "out"):
            pass
        assert live.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [live.name, "out"]


def test_a_swap_that_was_killed_half_way_is_undone(tmp_path: Path) -> None:
    """Where the system has no exchange: the old folder is aside, the new one not yet in its place."""
    (tmp_path / f".b{ASIDE}-1").mkdir()
    (tmp_path / f".b{ASIDE}-1" / "old").write_text("x")
    (tmp_path / f".b{MARK}-1").mkdir()
    with claim(tmp_path / "b"):
        assert (tmp_path / "b" / "old").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "old").write_text("x")
    if not at_once:
        monkeypatch.setattr(publish.ctypes, "CDLL", lambda *_, **__: object())
    with replacing(tmp_path / "b") as partial:
        (partial / "new").write_text("y")
        assert (tmp_path / "b" / "old").is_file()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["b", "b/new"]


@pytest.mark.parametrize("name", ["file", "file/below", "dangling"])
def test_what_is_no_place_for_a_folder_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"not a folder; choose another|exists already"):
        require_free(tmp_path / name)


def test_a_full_disk_is_found_before_writing(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="1,000,000,000,000,000,000 bytes are needed"):
        require_space(tmp_path / "not" / "yet", 10**18)
    require_space(tmp_path / "not" / "yet", 1)


@pytest.mark.parametrize("other_disk", [False, True])
def test_a_folder_is_moved_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_disk: bool) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("x")
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if other_disk and Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, target)

    monkeypatch.setattr(publish.os, "rename", rename)
    move_folder(tmp_path / "a", tmp_path / "kept" / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert [path.name for path in (tmp_path / "kept").iterdir() if path.is_dir()] == ["a"]
    assert (tmp_path / "kept" / "a" / "b" / "c").read_text() == "x"


def test_a_folder_is_not_moved_onto_another(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        move_folder(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").is_dir()


def test_what_another_process_made_before_the_claim_is_seen_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def late_claim(output: Path) -> Iterator[None]:
        output.mkdir()  # whoever held the name has just published
        yield

    monkeypatch.setattr(publish, "claim", late_claim)
    began = []
    with pytest.raises(UsageError, match="exists already"), publish.staged(tmp_path / "out"):
        began.append("work")
    assert began == []
