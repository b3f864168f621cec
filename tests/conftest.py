"""Fixtures that several rooms share: tiny checkpoints, one finished run and its export, and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .common import make_checkpoint, recipe_dict, write_recipe


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
    from koffkit.exporters import find

    from koffkit import compress
    from koffkit.progress import Silent
    from koffkit.recipe.load import load_recipe
    from koffkit.run.folder import RunFolder

    root = tmp_path_factory.mktemp("shipped")
    recipe = write_recipe(root / "recipe.yaml", recipe_dict(llama, root / "data"))
    compress(load_recipe(recipe), root / "run")
    find("hf").export(RunFolder(root / "run"), root / "export", {}, Silent())
    return Shipped(recipe, root / "run", root / "export")
