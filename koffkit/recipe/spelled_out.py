"""A recipe as text for people: with a schema that editors find, and with the fields that it leaves at their
defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from .builtin import schema_file
from .provenance import Origin, origins
from .schema import Recipe

DEFAULT = "  # default"
ELSEWHERE = ("koffkit", "name", "seed", "domains", "retention", "export")
"""Fields of which it means nothing to ask whether the paper or we chose them."""
MODELINE = "# yaml-language-server: $schema="
_MODELINE = re.compile(rf"{re.escape(MODELINE)}.*\n?")


def with_schema(text: str) -> str:
    """The text of a recipe file with a first line that names the installed schema, in place of any that it
    has."""
    path = schema_file()
    where = path.as_uri() if " " in str(path) else path
    return f"{MODELINE}{where}\n{_MODELINE.sub('', text)}"


def defaults_left(recipe: Recipe) -> Iterator[str]:
    """`field: value` for every field of a recipe that it does not give, but of its sources."""
    for path, value, given in _leaves(*_trees(recipe)):
        if not given and path[0] not in ("domains", "retention"):
            yield f"{'.'.join(path)}: {_flow(value)}"


def values_of(recipe: Recipe) -> dict[str, Any]:
    """The value of every field that is no mapping, by dotted place."""
    return {".".join(path): value for path, value, _ in _leaves(*_trees(recipe))}


def papers_values(recipe: Recipe) -> Iterator[str]:
    """`field: value  (where it comes from)` for every field that the paper has something to say about."""
    for place, origin in origins(recipe, values_of(recipe)).items():
        yield f"{place}: {_flow(origin.value)}  ({origin})"


def spelled_out(recipe: Recipe) -> str:
    """The whole recipe as YAML: whether a value is the paper's or ours, and every field marked that the
    recipe leaves at its default."""
    whole, given = _trees(recipe)
    return "\n".join(_lines(whole, given, "", "", origins(recipe, values_of(recipe)))) + "\n"


def _trees(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """All fields, and those that were given; each stage by its name."""
    trees = []
    for unset in (False, True):
        tree = recipe.model_dump(mode="json", exclude_unset=unset)
        stages = [item for stage in tree["stages"] for item in stage.items()]
        tree["stages"] = {name: options for name, options in stages if options is not None}
        trees.append(tree)
    return trees[0], trees[1]


def _leaves(
    whole: Mapping[str, Any], given: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, bool]]:
    """Place and value of every field that is no mapping, and whether it was given."""
    for key, value in whole.items():
        known = isinstance(given, Mapping) and key in given
        if isinstance(value, dict) and value:
            yield from _leaves(value, given[key] if known else None, (*path, key))
        else:
            yield (*path, key), value, known


def _lines(
    whole: Mapping[str, Any], given: Any, indent: str, above: str, known_of: Mapping[str, Origin]
) -> Iterator[str]:
    """The lines of one mapping.

    Args:
        indent: of its lines. above: its place, with a dot at the end. known_of: origins by place.
    """
    for key, value in whole.items():
        known, place = isinstance(given, Mapping) and key in given, f"{above}{key}"
        inner = given[key] if known else None
        if not isinstance(value, dict) or not value:
            yield f"{indent}{_flow(key)}: {_flow(value)}{_origin(place, known_of)}{'' if known else DEFAULT}"
            continue
        yield f"{indent}{_flow(key)}:"
        if key == "stages" and not indent:
            for name, options in value.items():
                yield from _item(_lines({name: options}, inner, "    ", "stages.", known_of))
        else:
            yield from _lines(value, inner, f"{indent}  ", f"{place}.", known_of)


def _origin(place: str, known_of: Mapping[str, Origin]) -> str:
    if place.partition(".")[0] in ELSEWHERE or place == "base.model":
        return ""
    return f"  # {known_of.get(place, 'ours')}"


def _item(lines: Iterator[str]) -> Iterator[str]:
    """One entry of a list: lines that are indented by four, the first with a dash."""
    for number, line in enumerate(lines):
        yield f"  - {line[4:]}" if number == 0 else line


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n...\n").strip()
