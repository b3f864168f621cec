"""Every block of the README and the documentation that is marked `<!-- run -->` runs as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from koffkit import api
from koffkit.recipe.schema import Recipe

from ..common import recipe_dict
from ..conftest import Koffkit

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^<!-- run -->\n+```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FEW_STEPS = (
    "stages.learn_masks.max_steps=1",
    "stages.recover.max_steps=1",
    "stages.route.epochs=1",
    "stages.evaluate={max_tokens: 64, swap: false, recall_limit: 1}",
)


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block that is marked."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


WITH_BLOCKS = [page for page in PAGES if page.is_file() and blocks_of(page)]


def run_commands(text: str, koffkit: Koffkit) -> None:
    for line in text.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "koffkit", f"{line}: a block that is run calls nothing but koffkit"
        if arguments[0] == "compress":
            arguments += [word for change in FEW_STEPS for word in ("--set", change)]
        done = koffkit(*arguments)
        assert done.code == 0, f"{line}\n{done.err}"


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """`koffkit.compress` with few steps, where a block does not say how many."""
    whole = api.compress

    def quick(recipe: str, output: str, *, set: dict[str, Any] | None = None) -> api.Run:
        return whole(recipe, output, set=FEW_STEPS if set is None else set)

    monkeypatch.setattr(api, "compress", quick)


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.name)
def test_the_blocks_of_a_page(
    page: Path, koffkit: Koffkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, in one folder, with one set of Python names: a page is one session."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for language, text in blocks_of(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), names)
        else:
            run_commands(text, koffkit)


def test_every_recipe_in_yaml_is_valid(llama: Path, tmp_path: Path) -> None:
    """Recipes on the pages, and parts of one: what is left out is that of the tests' own recipe."""
    blocks = [block for page in PAGES for block in YAML.findall(page.read_text(encoding="utf-8"))]
    assert blocks
    for block in blocks:
        Recipe.model_validate(recipe_dict(llama, tmp_path, **yaml.safe_load(block)))


def test_every_mark_belongs_to_a_block() -> None:
    marks = {
        page.name: page.read_text(encoding="utf-8").splitlines().count("<!-- run -->")
        for page in PAGES
        if page.is_file()
    }
    assert {name: count for name, count in marks.items() if count} == {
        page.name: len(blocks_of(page)) for page in WITH_BLOCKS
    }
    assert sum(marks.values()) >= 6
