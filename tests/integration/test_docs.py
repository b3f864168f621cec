"""The documentation site: it builds without a warning, and has every command and every field of a recipe."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from pydantic import BaseModel

import koffkit
from koffkit.artefact.bundle_info import BundleInfo
from koffkit.artefact.manifest import Manifest
from koffkit.cli import cli
from koffkit.recipe.provenance import ABLATIONS, PAPER, UNSTATED
from koffkit.run.state import RunState

ROOT = Path(__file__).parents[2]


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """As `make docs` does. Not with --quiet: warnings that are not printed are not counted either."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=project, capture_output=True, text=True)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def command_paths(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from command_paths(command, f"{path} {name}")


def sections_of(page: Path) -> dict[str, str]:
    """The text under each heading of the second level, by heading."""
    parts = page.read_text(encoding="utf-8").split("<h2 ")[1:]
    texts = [html.unescape(re.sub(r"<[^>]+>", "", f"<h2 {part}")) for part in parts]
    return {text.partition("¶")[0]: text.partition("¶")[2] for text in texts}


def test_every_command_and_option_is_on_its_page(site: Path) -> None:
    sections = sections_of(site / "commands" / "index.html")
    commands = dict(command_paths(cli, "koffkit"))
    assert list(sections) == list(commands)
    for path, command in commands.items():
        options = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
        assert [name for name in options if name not in sections[path]] == [], path


def models_in(annotation: Any, place: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """The objects that a field may hold, each with the dotted name of its place."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield place, annotation
    named = getattr(annotation, "__origin__", None) is dict
    for argument in get_args(annotation):
        yield from models_in(argument, f"{place}.NAME" if named else place)


def field_places(model: type[BaseModel], path: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        place = f"{path}.{field.alias or name}".lstrip(".")
        yield place
        for inner, child in models_in(field.annotation, place):
            yield from field_places(child, inner)


def test_every_field_of_a_recipe_is_on_its_page(site: Path) -> None:
    page = (site / "recipe-fields" / "index.html").read_text(encoding="utf-8")
    places = list(field_places(koffkit.Recipe))
    assert "stages.learn_masks.lr.gates" in places
    assert [place for place in places if f"<td><code>{place}</code></td>" not in page] == []


@pytest.mark.parametrize(
    ("page", "records"),
    [("artefact-format", (Manifest, BundleInfo)), ("run-folder", (RunState,))],
    ids=["export", "run"],
)
def test_every_field_of_a_format_is_on_its_page(
    site: Path, page: str, records: tuple[type[BaseModel], ...]
) -> None:
    text = (site / page / "index.html").read_text(encoding="utf-8")
    places = Counter(place for record in records for place in field_places(record))
    assert len(places) > 30
    counts = {place: text.count(f"<td><code>{place}</code></td>") for place in places}
    assert {place: count for place, count in places.items() if counts[place] < count} == {}


@pytest.mark.parametrize("page", ["artefact-format", "run-folder", "recipe-fields"])
def test_every_field_has_a_meaning(site: Path, page: str) -> None:
    text = (site / page / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<tr>\s*<td>(.*)</td>\s*<td>.*</td>\s*<td>.*</td>\s*<td></td>", text) == []


def test_the_papers_values_stand_beside_those_of_the_recipes(site: Path) -> None:
    page = (site / "paper" / "index.html").read_text(encoding="utf-8")
    cells = re.findall(
        r"<td><code>([\w.]+)</code></td>\s*<td>(.*?)</td>\s*<td>(.*?)</td>\s*<td>(.*?)</td>", page
    )
    rows = {place: rest for place, *rest in cells}
    assert set(rows) == set(PAPER)
    for place, (paper, recipe, source) in rows.items():
        stated = PAPER[place].value != UNSTATED
        assert (paper == recipe, bool(source)) == (stated, stated), place
    assert "8B 25.0" in rows["mask.lambda_init"][0]
    named = {f"paper/{name.replace('-', '/', 1)}" for name in ABLATIONS}
    assert {name for name in named if f"<td><code>{name}</code></td>" not in page} == set()


def test_every_public_name_is_on_the_python_page(site: Path) -> None:
    text = text_of(site / "python" / "index.html")
    assert [name for name in koffkit.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetched = re.compile(r"""<(?:script|link|img)\b[^>]*(?:src|href)=["']https?://[^"']+""")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    assert [found for page in pages for found in fetched.findall(page.read_text(encoding="utf-8"))] == []


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    """Of the configuration as it is, on a page that names a page that is not there."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[nowhere](nowhere.md)\n")
    (tmp_path / "mkdocs.yml").write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\nhooks: []\nplugins: []\nnav: [index.md]\ndocs_dir: docs\n"
    )
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert "nowhere.md" in done.stderr
