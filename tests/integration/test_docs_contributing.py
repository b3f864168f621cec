"""What CONTRIBUTING.md and the page of plug-ins name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from koffkit import plugins

from ..outside import files_of_page

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
GROUPS = sorted(value for name, value in vars(plugins).items() if name.isupper())


def rooms() -> list[str]:
    """The packages of the core, and the exporters."""
    core = [path.parent.name for path in (ROOT / "koffkit").glob("*/__init__.py")]
    return sorted({*core, "exporters"} - {"embedded", "report", "sliced"})


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "koffkit/arch/README.md", "docs/plugins.md"])
def test_every_path_that_is_named_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = set(re.findall(r"`([\w./-]+/[\w./-]+\.\w+)`", text)) | set(re.findall(r"\]\(([\w./-]+)\)", text))
    assert paths
    bases = (ROOT, (ROOT / page).parent)
    known = [path for path in paths if "NAME" not in path]
    assert [path for path in known if not any((base / path).exists() for base in bases)] == []


def test_the_table_of_rooms_is_whole() -> None:
    table = TEXT.split("| room |")[1].split("\n\n")[0]
    assert [room for room in rooms() if f"`{room}`" not in table] == []


@pytest.mark.parametrize("group", GROUPS)
def test_every_kind_of_plug_in_has_steps_and_an_example(group: str) -> None:
    assert f"`{group}`" in TEXT
    assert f'[project.entry-points."{group}"]' in files_of_page()["pyproject.toml"]


def test_every_make_target_is_named() -> None:
    targets = re.findall(r"^(\w+): \$\(STAMP\)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    pages = TEXT + (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(targets) > 5
    assert [name for name in targets if f"make {name}" not in pages and name != "types"] == []
