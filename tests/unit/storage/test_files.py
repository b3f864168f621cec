from __future__ import annotations

import os
from pathlib import Path

import pytest

from koffkit.storage.files import write_atomically, write_json


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
