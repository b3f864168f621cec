"""`koffkit recipe list|show|validate|schema`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import DataError, KoffkitError, UsageError, near_name
from .console import emit, json_option, say

if TYPE_CHECKING:
    from .supply import Supply


@click.group("recipe")
def command() -> None:
    """List, show and validate recipes."""


@command.command("list")
@click.option(
    "--gpu",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB",
    help="Only those that fit an accelerator with so much memory, by the plan's estimate.",
)
@json_option
def list_(gpu: float | None, as_json: bool) -> None:
    """The recipes that ship with koffkit."""
    from ..recipe.builtin import describe, shipped

    descriptions = {name: describe(path) for name, path in shipped().items()}
    if gpu is not None:
        _list_presets(gpu, descriptions, as_json)
        return
    if as_json:
        emit({"recipes": descriptions})
        return
    width = max(map(len, descriptions))
    for name, text in descriptions.items():
        say(f"{name:{width}}  {text}")


def _list_presets(gpu: float, descriptions: dict[str, str], as_json: bool) -> None:
    from dataclasses import asdict

    from ..planning.presets import preset
    from ..recipe.builtin import shipped

    found = {name: preset(path, round(gpu * 1e9)) for name, path in shipped().items()}
    known = {name: one for name, one in found.items() if one is not None}
    fitting = {name: one for name, one in known.items() if one.fits}
    too_large = [name for name in known if name not in fitting]
    if as_json:
        presets = {name: asdict(one) | {"description": descriptions[name]} for name, one in fitting.items()}
        emit({"gpu_bytes": round(gpu * 1e9), "presets": presets, "too_large": too_large})
        return
    width = max(map(len, fitting), default=0)
    for name, one in fitting.items():
        settings = "".join(f" --set {setting}" for setting in one.settings)
        needs = f", with{settings}" if settings else ""
        say(f"{name:{width}}  {one.peak_memory_bytes / 1e9:5.1f} GB  {one.base}{needs}")
    if too_large:
        least = min(too_large, key=lambda name: known[name].peak_memory_bytes)
        say(
            f"Too large for {gpu:g} GB: {len(too_large)}; the smallest of them, {least}, needs "
            f"{known[least].peak_memory_bytes / 1e9:.1f} GB and a tenth more to spare."
        )


@command.command("show")
@click.argument("name")
@click.option("--all", "whole", is_flag=True, help="Every field, with what its value comes from.")
def show(name: str, whole: bool) -> None:
    """Print a shipped recipe, to start your own from, or a recipe file; at its end stand which of its values
    are the paper's, and the defaults of what it leaves out."""
    from ..recipe.builtin import shipped
    from ..recipe.load import load_recipe
    from ..recipe.spelled_out import defaults_left, papers_values, spelled_out, with_schema

    if name not in shipped() and not Path(name).is_file():
        raise UsageError(f"{name}: no such shipped recipe or file; {near_name(name, shipped())}")
    loaded = load_recipe(name)
    if whole:
        say(with_schema(spelled_out(loaded.recipe)), nl=False)
        return
    say(with_schema(loaded.path.read_text(encoding="utf-8")).rstrip("\n"))
    say("\n# The paper's values (arXiv 2605.29075) and ours; all that is not named here is ours.")
    for line in papers_values(loaded.recipe):
        say(f"# {line}")
    say("\n# Defaults of what is left out; `koffkit recipe show --all` has them in their places.")
    for line in defaults_left(loaded.recipe):
        say(f"# {line}")


@command.command("validate")
@click.argument("recipes", nargs=-1, required=True)
@click.option(
    "--set", "overrides", multiple=True, metavar="a.b=VALUE", help="Change a field first, in all; repeatable."
)
@json_option
def validate(recipes: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Check recipe files and what they name, as far as it is on this machine; all errors at once. Estimate
    how many tokens the text has beside those that training asks for."""
    from ..recipe.load import load_recipe
    from .checks import check_recipe
    from .supply import read_too_often, text_supply

    problems: list[str] = []
    supplies: dict[str, Supply] = {}
    kind: type[KoffkitError] = DataError
    for name in recipes:
        try:
            loaded = load_recipe(name, overrides)
            check_recipe(loaded)
        except (UsageError, DataError) as error:
            problems += str(error).splitlines()
            kind = UsageError if isinstance(error, UsageError) else kind
        else:
            supplies[name] = text_supply(loaded)
            if not as_json:
                _say_valid(name, supplies[name])
    if problems:
        raise kind("\n".join(problems))
    if as_json:
        warnings = {name: list(read_too_often(supply)) for name, supply in supplies.items()}
        emit({"valid": list(recipes), "text": supplies, "warnings": warnings})


def _say_valid(name: str, supply: Supply) -> None:
    from .supply import read_too_often, supply_rows

    say(f"{name}: ok; tokens, estimated from a sample:")
    for what, sentence in supply_rows(supply):
        say(f"  {what.removeprefix('tokens of ')}: {sentence}")
    for warning in read_too_often(supply):
        say(f"warning: {warning}")


@command.command("schema")
def schema() -> None:
    """The JSON schema of recipes, for editors."""
    from ..recipe.builtin import json_schema

    emit(json_schema(), indent=2)
