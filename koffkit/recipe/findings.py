"""Pydantic's errors in a recipe as lines that a user can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from .schema import Recipe
from .stages import STAGES
from .yaml_text import Location

Lines = dict[Location, str]  # where the user wrote each place: `file:line`, or the option
Item = Mapping[str, Any]
MOST = 50
LONGEST = 80
# Pydantic's error types for a value whose kind does not fit a branch of a union at all.
WRONG_KIND = {
    "model_type",
    "model_attributes_type",
    "dict_type",
    "list_type",
    "string_type",
    "float_type",
    "int_type",
}


def findings(error: ValidationError, tree: Any, source: Path | str, lines: Lines) -> list[str]:
    """One line per finding: `file:line: field: what is wrong`. For a union, the findings are those of the
    branch that is closest to what the user wrote.

    Args:
        error: pydantic's error.
        tree: the recipe as plain values.
        source: the recipe's file.
        lines: where the user wrote each field.
    """
    result: dict[str, None] = {}
    for item in _nearest(error.errors(), tree):
        location = _written(item, tree)[0]
        place = place_of(location, lines) or str(source)
        result[f"{place}: {dotted(location) or 'recipe'}: {_explain(item, location)}"] = None
    shown = list(result)
    more = [f"{source}: and {len(shown) - MOST:,} more errors"] if len(shown) > MOST else []
    return shown[:MOST] + more


def place_of(location: Location, lines: Lines) -> str | None:
    """Where the user wrote this field, else the nearest field around it, else one within it."""
    for length in range(len(location), 0, -1):
        if location[:length] in lines:
            return lines[location[:length]]
    return next((lines[key] for key in lines if key[: len(location)] == location), None)


def dotted(location: Location) -> str:
    """A place as users write it, `mask.global_sparsity`."""
    return ".".join(_short(str(part)) for part in location)


def _written(item: Item, tree: Any) -> tuple[Location, Location | None, Any]:
    """The part of a location that the user wrote (pydantic adds the names of a union's branches), and the
    first union in it with its branch, if any."""
    loc, missing = item["loc"], item["type"] == "missing"
    kept: list[str | int] = []
    union, branch, value = None, None, tree
    for index, part in enumerate(loc):
        is_field = isinstance(value, Mapping) and isinstance(part, str)
        is_entry = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if (is_field and part in value) or is_entry:
            kept.append(part)
            value = value[part]
        elif missing and index == len(loc) - 1:
            kept.append(part)
        elif union is None and not str(part).startswith("<") and part != "[key]":
            union, branch = tuple(kept), part
    return tuple(kept), union, branch


def _nearest(items: Sequence[Any], tree: Any) -> Iterator[Item]:
    """The findings outside of unions, and for every union those of its closest branch."""
    unions: dict[Location, dict[Any, list[Item]]] = {}
    for item in items:
        _, union, branch = _written(item, tree)
        if union is None:
            yield item
        else:
            unions.setdefault(union, {}).setdefault(branch, []).append(item)
    for place, branches in unions.items():
        right = {
            branch: group
            for branch, group in branches.items()
            if not any(_is_wrong_kind(item) and _ends(item, place, tree) for item in group)
        }
        if not right or (len(right) == len(branches) > 1 and _plain(place, tree)):
            first = next(iter(branches.values()))[0]
            yield {
                **first,
                "loc": place,
                "type": "union",
                "msg": _description(place),
                "input": _at(place, tree),
            }
        else:
            yield from _without_echoes(min(right.values(), key=_distance), tree)


def _is_wrong_kind(item: Item) -> bool:
    literal = item["type"] == "literal_error" and not isinstance(item["input"], str)
    return literal or item["type"] in WRONG_KIND


def _plain(place: Location, tree: Any) -> bool:
    return not isinstance(_at(place, tree), (Mapping, list))


def _ends(item: Item, place: Location, tree: Any) -> bool:
    """Whether a finding is about the value of a union itself, not about a field within."""
    return _written(item, tree)[0] == place


def _at(place: Location, tree: Any) -> Any:
    for part in place:
        tree = tree[part]
    return tree


def _distance(group: Sequence[Item]) -> tuple[int, int]:
    """How far a branch is from what the user wrote: unknown keys that are not near misses, then findings."""
    unknown = [str(item["loc"][-1]) for item in group if item["type"] == "extra_forbidden"]
    missing = [str(item["loc"][-1]) for item in group if item["type"] == "missing"]
    near = sum(bool(difflib.get_close_matches(key, missing, n=1, cutoff=0.5)) for key in unknown)
    return len(unknown) + len(missing) - 2 * near, len(group)


def _description(place: Location) -> str:
    """The description of a field in the schema."""
    owners = _models_at(place[:-1]) if place else []
    fields = [owner.model_fields[str(place[-1])] for owner in owners if place[-1] in owner.model_fields]
    text = fields[0].description if fields else None
    return f"not one of what this field takes ({text.rstrip('.')})" if text else "not a value of this field"


def _without_echoes(items: Sequence[Item], tree: Any) -> Iterator[Item]:
    """Drop 'field missing' if its misspelt name is reported: one line per mistake."""
    unknown: dict[Location, list[str]] = {}
    for item in items:
        if item["type"] == "extra_forbidden":
            place = _written(item, tree)[0]
            unknown.setdefault(place[:-1], []).append(str(place[-1]))
    for item in items:
        place = _written(item, tree)[0]
        echo = item["type"] == "missing" and difflib.get_close_matches(
            str(place[-1]), unknown.get(place[:-1], []), n=1, cutoff=0.5
        )
        if not echo:
            yield item


def _explain(item: Item, location: Location) -> str:
    value = item.get("input")
    if item["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        return "unknown key" + (
            f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}"
        )
    if item["type"] == "missing":
        return "is required"
    message = str(item["msg"]).removeprefix("Value error, ")
    message = re.sub(r"dictionary( or instance of \w+)?", "mapping", message)
    shown = "" if isinstance(value, (dict, list, BaseModel)) else f"{_short(repr(value))}: "
    quote = "; quote it" if item["type"] == "string_type" and isinstance(value, (bool, int, float)) else ""
    return shown + message[:1].lower() + message[1:] + quote


def _short(text: str) -> str:
    """Shortened to a line, with control characters escaped."""
    plain = text if text.isprintable() else ascii(text)[1:-1]
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 3]}..."


def _fields_at(location: Location) -> list[str]:
    """The field names the schema knows at a place, for near-name suggestions."""
    return [name for model in _models_at(location) for name in model.model_fields]


def _models_at(location: Location) -> list[type[BaseModel]]:
    """The models that may stand at a place: several where it is a union."""
    models: list[type[BaseModel]] = [Recipe]
    for part in location:
        if part in STAGES:
            models = [STAGES[part]]
        elif isinstance(part, str):
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            if fields:
                models = [model for field in fields for model in _models_in(field.annotation)]
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
