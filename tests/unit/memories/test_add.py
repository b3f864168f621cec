from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from koffkit.artefact.export import open_export
from koffkit.errors import UsageError
from koffkit.memories.add import free_place, work_folder

from ...conftest import Shipped


def test_what_a_command_left_that_was_killed_at_its_end_is_swept(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shipped.export, "out")
    export = open_export(Path("out"))
    work = work_folder(export, "north", replace=False)
    left = [Path("runs/.out-north.koffkit-partial-999999"), Path("out/memories/.north.koffkit-lock")]
    left[0].mkdir(parents=True)
    left[1].touch()
    with pytest.raises(UsageError, match="there is a memory 'north' already"):
        free_place(export, "north", work)
    assert not [path for path in left if path.exists()]
