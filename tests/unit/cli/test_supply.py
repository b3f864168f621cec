"""`koffkit recipe validate` says how much text there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from koffkit.cli.supply import OFTEN, read_too_often, supply_rows, text_supply
from koffkit.recipe.load import load_recipe

from ...common import recipe_dict, write_recipe
from ...conftest import Koffkit


def test_rows_and_warnings() -> None:
    supply = {
        "enough": {"available": 1000, "asked": OFTEN * 1000},
        "little": {"available": 1000, "asked": OFTEN * 1000 + 1},
        "none": {"available": 0, "asked": 10},
        "far": {"available": None, "asked": 10},
    }
    assert dict(supply_rows(supply)) == {
        "tokens of enough": "about 1,000 there, 20,000 asked for, read 20.0 times",
        "tokens of little": "about 1,000 there, 20,001 asked for, read 20.0 times",
        "tokens of none": "about 0 there, 10 asked for",
        "tokens of far": "unknown there, 10 asked for",
    }
    assert [text.partition(":")[0] for text in read_too_often(supply)] == ["little", "none"]


def test_validate_says_them(llama: Path, tmp_path: Path, koffkit: Koffkit) -> None:
    recipe = recipe_dict(llama, tmp_path / "data")
    path = str(write_recipe(tmp_path / "r.yaml", recipe))
    shown = koffkit("recipe", "validate", path)
    assert re.search(r"north: about [\d,]+ there, [\d,]+ asked for, read [\d.]+ times", shown.out)
    assert "estimated from a sample" in shown.out
    assert "warning" not in shown.out
    recipe["stages"][1]["recover"]["max_steps"] = 100_000
    often = str(write_recipe(tmp_path / "often.yaml", recipe))
    assert "warning: north: its" in koffkit("recipe", "validate", often).out
    tree = koffkit("recipe", "validate", path, often, "--json").json
    assert tree["text"][path] == text_supply(load_recipe(path))
    assert tree["warnings"][path] == []
    assert len(tree["warnings"][often]) == 2


def test_it_is_said_without_torch() -> None:
    script = (
        "import sys\nfrom koffkit.cli import main\n"
        "try: main(['recipe', 'validate', 'quickstart'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "asked for" in done.stdout
