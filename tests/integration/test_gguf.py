"""A GGUF file as base, from the recipe to the export, and when it has moved since."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ..common import recipe_dict, write_recipe
from ..conftest import Koffkit
from ..gguf_files import make_gguf

pytest.importorskip("gguf")
STAGES = [{"learn_masks": {"max_steps": 2, "batch_size": 2}}, {"evaluate": {"max_tokens": 64}}]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose base is `models/tiny.gguf` beside it."""
    monkeypatch.setenv("KOFFKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    make_gguf(tmp_path / "models" / "tiny.gguf")
    tree = recipe_dict(Path("models/tiny.gguf"), tmp_path / "data", stages=STAGES)
    return write_recipe(tmp_path / "recipe.yaml", tree)


def test_every_command_works_with_a_gguf_file(recipe: Path, koffkit: Koffkit) -> None:
    checked = koffkit("recipe", "validate", recipe)
    assert checked.code == 0, checked.err
    assert "models/tiny.gguf: dequantising" in checked.err
    planned = koffkit("compress", recipe, "--dry-run", "--json")
    assert planned.code == 0, planned.err
    assert "dequantising" not in planned.err
    assert planned.json["text"]["north"]["available"] > 0
    for command in (
        ("compress", recipe, "--output", "run"),
        ("compress", recipe, "--output", "run", "--resume"),
        ("export", "run", "--output", "out"),
        ("verify", "out"),
        ("inspect", "run"),
    ):
        result = koffkit(*command)
        assert result.code == 0, result.err
    shown = koffkit("inspect", "out", "--json")
    assert shown.json["base"]["model"] == "./models/tiny.gguf"
    assert shown.json["base"]["license"] == {"license": "apache-2.0"}


def test_a_run_finds_its_base_when_file_and_cache_have_moved(recipe: Path, koffkit: Koffkit) -> None:
    root = recipe.parent
    assert koffkit("compress", recipe, "--output", "run").code == 0
    moved = Path(shutil.move(root / "models" / "tiny.gguf", root / "moved.gguf"))
    assert koffkit("export", "run", "--output", "cached").code == 0  # from the cache
    shutil.rmtree(root / "cache")
    lost = koffkit("export", "run", "--output", "lost")
    assert lost.code == 3
    assert "base.model: no file 'models/tiny.gguf' in" in lost.err
    assert "--base PATH" in lost.err
    assert koffkit("export", "run", "--output", "found", "--base", moved).code == 0
    text = root / "data" / "south.txt"
    added = koffkit("memory", "add", "found", "east", "--text", text, "--base", moved)
    assert added.code == 0, added.err


def test_what_cannot_be_read_is_one_line_with_its_exit_code(recipe: Path, koffkit: Koffkit) -> None:
    file = recipe.parent / "models" / "tiny.gguf"
    content = file.read_bytes()
    for damaged, code, words in (
        (content[:-64], 4, "truncated"),
        (content[:500], 4, "the header is truncated or damaged"),
        (b"not this", 3, "no GGUF file"),
    ):
        file.write_bytes(damaged)
        result = koffkit("recipe", "validate", recipe)
        assert result.code == code, result.err
        assert result.err.startswith("Error: base.model: ")
        assert words in result.err
        assert len(result.err.splitlines()) == 1
    file.unlink()
    missing = koffkit("recipe", "validate", recipe)
    assert missing.code == 3
    assert "no file 'models/tiny.gguf'" in missing.err
