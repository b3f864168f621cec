"""Names of bases that are neither folders nor hub ids are told apart before the hub is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from koffkit.errors import DataError
from koffkit.hub import is_hub_id, locate, locate_again


@pytest.mark.parametrize(
    "name", ["models/my model", "models/base--v1", "models/llama.git", "models/.base", "x" * 5000, "a\0b"]
)
def test_what_cannot_be_on_the_hub_is_not_asked_for(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"base\.model: (no folder|.* cannot be looked for)"):
        locate(name, tmp_path)


def test_a_file_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "x.bin").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"base\.model: .*x\.bin is a file and no GGUF file; name the folder"):
        locate("models/x.bin", tmp_path)


def test_a_missing_gguf_file_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    assert not is_hub_id("models/x.gguf", tmp_path)
    with pytest.raises(DataError, match=r"base\.model: no file 'models/x\.gguf' in"):
        locate("models/x.gguf", tmp_path)


def test_a_base_that_was_moved_is_found_beside_its_run_or_where_the_user_says(tmp_path: Path) -> None:
    run, base = tmp_path / "q" / "runs" / "x", tmp_path / "q" / "base"
    for folder in (run, base):
        folder.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    gone = tmp_path / "p"
    assert locate_again(gone / "base", "base", gone, run, revision=None) == base.resolve()
    assert locate_again(gone, str(gone), gone, run, revision=None, given=base) == base.resolve()
    with pytest.raises(DataError, match=r"Say where the base is now with --base PATH"):
        locate_again(gone / "base", str(gone / "base"), gone, run, revision=None)
    with pytest.raises(DataError, match=r"--base .*: no folder with a config\.json and no GGUF"):
        locate_again(gone, "base", gone, run, revision=None, given=run)
