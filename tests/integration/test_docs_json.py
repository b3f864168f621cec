"""`docs/json-output.md` names every key that a command prints with `--json`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest

from koffkit.cli import cli

from ..conftest import Koffkit, Shipped
from .test_docs import command_paths

PAGE = (Path(__file__).parents[2] / "docs" / "json-output.md").read_text(encoding="utf-8")
SECTIONS = dict(part.split("\n", 1) for part in PAGE.split("\n## ")[1:])


def names_in(section: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", SECTIONS[section]))


def test_every_command_with_json_has_a_section() -> None:
    commands = {path.removeprefix("koffkit "): command for path, command in command_paths(cli, "koffkit")}
    with_json = [
        path
        for path, command in commands.items()
        if any(
            "--json" in parameter.opts for parameter in command.params if isinstance(parameter, click.Option)
        )
    ]
    assert sorted(SECTIONS) == sorted(["An error", *with_json])


@pytest.mark.parametrize(
    ("section", "arguments"),
    [
        ("compress", ["compress", "{recipe}", "--dry-run"]),
        ("evaluate", ["evaluate", "{run}"]),
        ("evaluate", ["evaluate", "{export}", "--data", "{data}"]),
        ("export", ["export", "{run}", "--output", "out"]),
        ("generate", ["generate", "{export}", "--prompt", "x", "--max-new-tokens", "1"]),
        ("inspect", ["inspect", "{run}"]),
        ("inspect", ["inspect", "{base}"]),
        ("verify", ["verify", "{export}"]),
        ("memory list", ["memory", "list", "{export}"]),
        ("doctor", ["doctor"]),
        ("recipe list", ["recipe", "list"]),
        ("recipe list", ["recipe", "list", "--gpu", "8"]),
        ("recipe validate", ["recipe", "validate", "{recipe}"]),
        ("An error", ["inspect", "nowhere"]),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value[:2]),
)
def test_the_keys_of_an_object(
    section: str,
    arguments: list[str],
    shipped: Shipped,
    llama: Path,
    koffkit: Koffkit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    data = shipped.recipe.parent / "data" / "north.txt"
    places = {
        "recipe": shipped.recipe,
        "run": shipped.run,
        "export": shipped.export,
        "base": llama,
        "data": data,
    }
    shown = koffkit(*(word.format(**places) for word in arguments), "--json").json
    assert keys_of(section, shown) - names_in(section) == set()


def keys_of(section: str, shown: dict[str, Any]) -> set[str]:
    """The keys of an object, and those of the objects in it that the section describes too."""
    inner: list[dict[str, Any]] = []
    if section == "compress":
        inner = [shown["plan"]]
    elif section == "generate":
        inner = shown["completions"]
    elif section == "memory list":
        inner = list(shown["memories"].values())
    if "verdict" in shown:
        inner = [*inner, shown["verdict"]]
    return set(shown).union(*inner)
