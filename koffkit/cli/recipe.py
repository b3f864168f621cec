"""`koffkit recipe list|show|validate|schema`."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import DataError, KoffkitError, UsageError, near_name
from .console import emit, json_option, say


@click.group("recipe")
def command() -> None:
    """List, show and validate recipes."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """The recipes that ship with koffkit."""
    from ..recipe.builtin import describe, shipped

    descriptions = {name: describe(path) for name, path in shipped().items()}
    if as_json:
        emit({"recipes": descriptions})
        return
    width = max(map(len, descriptions))
    for name, text in descriptions.items():
        say(f"{name:{width}}  {text}")


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
@json_option
def validate(recipes: tuple[str, ...], as_json: bool) -> None:
    """Check recipe files and what they name, as far as it is on this machine; all errors at once."""
    from ..recipe.load import load_recipe
    from .checks import check_recipe

    problems: list[str] = []
    kind: type[KoffkitError] = DataError
    for name in recipes:
        try:
            check_recipe(load_recipe(name))
        except (UsageError, DataError) as error:
            problems += str(error).splitlines()
            kind = UsageError if isinstance(error, UsageError) else kind
        else:
            if not as_json:
                say(f"{name}: ok")
    if problems:
        raise kind("\n".join(problems))
    if as_json:
        emit({"valid": list(recipes)})


@command.command("schema")
def schema() -> None:
    """The JSON schema of recipes, for editors."""
    from ..recipe.builtin import json_schema

    emit(json_schema(), indent=2)
