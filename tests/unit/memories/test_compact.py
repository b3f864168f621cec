from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from koffkit.storage.publish import exchange, replacing


@pytest.mark.parametrize("at_once", [True, False])
def test_two_folders_change_places(at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not at_once:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())  # a system without renameat2
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    exchange(tmp_path / "one", tmp_path / "two")
    assert [(tmp_path / name / "file").read_text() for name in ("one", "two")] == ["two", "one"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "north"
    target.mkdir()
    (target / "old").write_text("x")
    with pytest.raises(RuntimeError), replacing(target) as partial:
        (partial / "new").write_text("y")
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["north", "old"]
    with replacing(target) as partial:
        (partial / "new").write_text("y")
        assert (target / "old").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["north", "new"]
