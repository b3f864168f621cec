from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from koffkit.storage.files import make_folder, replacing_file, write_atomically, write_json


def test_a_reader_sees_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"v": 1})

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "half")
    assert path.read_text() == '{\n  "v": 1\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_names_the_file(tmp_path: Path) -> None:
    """As beyond a limit of file sizes: Python's own error names none."""
    path = tmp_path / "a.bin"
    with pytest.raises(OSError, match="File too large") as failed, replacing_file(path) as file:
        file.write(b"half")
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    assert failed.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_makes_meanwhile_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = os.path.lexists

    def made_meanwhile(place: Path) -> bool:
        Path(place).mkdir(exist_ok=True)
        return asks(place)

    monkeypatch.setattr(os.path, "lexists", made_meanwhile)
    make_folder(tmp_path / "cache")
    assert (tmp_path / "cache").is_dir()
