"""`koffkit inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import RichProgress, emit, json_option, say, stdout


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--all", "whole", is_flag=True, help="Everything, not ten lines.")
@json_option
def command(path: Path, whole: bool, as_json: bool) -> None:
    """Say what PATH is: a run (and how far it is), an export, a memory bundle or a checkpoint."""
    from ..checkpoint.files import CONFIG
    from ..runtime.inspect import describe

    if (path / CONFIG).is_file():  # a checkpoint
        RichProgress().message("reading the weights for their digest")
    found = describe(path)
    if as_json:
        emit(found)
        return
    if not whole:
        from ..runtime.overview import overview

        for line in (f"{path}: {found['kind']}; more with --all", *overview(found)):
            say(line)
        return
    from rich.tree import Tree

    tree = Tree(f"{path}: {found['kind']}")
    _grow(tree, {key: value for key, value in found.items() if key != "kind"})
    stdout().print(tree, markup=False)


def _grow(tree: Any, value: dict[str, Any]) -> None:
    for key, item in value.items():
        if isinstance(item, dict) and item:
            _grow(tree.add(str(key)), item)
        else:
            tree.add(f"{key}: {_short(item)}")


def _short(item: Any) -> str:
    if isinstance(item, list) and len(item) > 4 and len({str(i) for i in item}) == 1:
        return f"{item[0]} ({len(item)} times)"
    return f"{item:,}" if isinstance(item, int) and not isinstance(item, bool) else str(item)
