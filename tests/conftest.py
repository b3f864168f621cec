"""Fixtures that several rooms share: tiny checkpoints, one finished run and its export, and the command
line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .common import make_checkpoint, recipe_dict, sentences, write_recipe


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"))


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


Koffkit = Callable[..., Result]


@pytest.fixture
def koffkit(capfd: pytest.CaptureFixture[str]) -> Koffkit:
    """The command line, in this process: exit code, stdout, stderr."""
    from koffkit.cli import main

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        code = stop.value.code
        return Result(code if isinstance(code, int) else 0, out, err)

    return call


@dataclass
class Shipped:
    """A finished run, its recipe file and its export."""

    recipe: Path
    run: Path
    export: Path


@pytest.fixture(scope="session")
def shipped(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """Do not change these folders; copy what you want to damage."""
    from koffkit.exporters import export

    from koffkit.recipe.load import load_recipe
    from koffkit.stages.engine import run_recipe

    root = tmp_path_factory.mktemp("shipped")
    recipe = write_recipe(root / "recipe.yaml", recipe_dict(llama, root / "data"))
    run_recipe(load_recipe(recipe), root / "run")
    export(root / "run", root / "export")
    return Shipped(recipe, root / "run", root / "export")


@pytest.fixture(scope="session")
def restored(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """A run whose memories have all three halves, restored neurons too, and its export. Do not change
    them."""
    from koffkit.exporters import export

    from koffkit.recipe.load import load_recipe
    from koffkit.stages.engine import run_recipe

    root = tmp_path_factory.mktemp("restored")
    tree = recipe_dict(llama, root / "data")
    tree["memory"]["neurons"] = {"count": 3}
    tree["mask"]["global_sparsity"] = 0.2
    tree["stages"].insert(1, {"restore": {"batches": 2, "batch_size": 2}})
    recipe = write_recipe(root / "recipe.yaml", tree)
    run_recipe(load_recipe(recipe), root / "run")
    export(root / "run", root / "export")
    return Shipped(recipe, root / "run", root / "export")


@pytest.fixture
def out(shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the export in the working folder, with text for a domain `east` beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "east.txt").write_text("\n\n".join(sentences(7, 80)) + "\n")
    facts = [{"text": text, "prompt": text[:12], "answer": text[12:]} for text in sentences(8, 40)]
    (tmp_path / "east.jsonl").write_text(
        "\n".join(json.dumps(fact | {"body": fact["answer"]}) for fact in facts) + "\n"
    )
    return Path(shutil.copytree(shipped.export, tmp_path / "out"))
