"""The commands of the contract, as a user calls them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from koffkit.cli import COMMANDS

from ..conftest import Koffkit


def test_recipe_commands(koffkit: Koffkit, tmp_path: Path) -> None:
    assert "quickstart" in koffkit("recipe", "list").out
    shown = koffkit("recipe", "show", "quickstart").out
    (tmp_path / "mine.yaml").write_text(shown)
    assert koffkit("recipe", "validate", tmp_path / "mine.yaml").code == 0
    changed = koffkit("recipe", "validate", tmp_path / "mine.yaml", "--set", "mask.global_sparsity=1.5")
    assert changed.code != 0 and "mask.global_sparsity: 1.5" in changed.err
    assert yaml.safe_load(shown)["name"] == "quickstart"
    assert "properties" in koffkit("recipe", "schema").json["$defs"]["Recipe"]


def test_help_lists_every_command(koffkit: Koffkit) -> None:
    shown = koffkit("--help").out
    assert all(name in shown for name in COMMANDS)
    for name in COMMANDS:
        assert koffkit(name, "--help").code == 0


@pytest.mark.parametrize(
    "statement",
    ["import koffkit", "from koffkit.cli import cli; cli.main(['--help'], standalone_mode=False)"],
)
def test_import_and_help_load_nothing_heavy(statement: str) -> None:
    heavy = (
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "numpy",
        "pydantic",
        "rich.progress",
        "safetensors",
    )
    check = f"loaded = [name for name in {heavy!r} if name in sys.modules]; assert not loaded, loaded"
    script = f"import sys; {statement}; {check}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
