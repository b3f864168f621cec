"""`--set a.b=VALUE`: changing one field of a recipe's tree."""

from __future__ import annotations

import difflib
from typing import Any

from ..errors import UsageError
from .yaml_text import MAX_DEPTH, Location, read_value


def shown(override: str) -> str:
    """An override as shown in an error, with control characters escaped."""
    return override if override.isprintable() else ascii(override)[1:-1]


def apply_override(tree: dict[str, Any], override: str) -> Location:
    """Change one field of a recipe's tree in place; returns where.

    Raises:
        UsageError: the override is not `a.b=VALUE`, or there is no such place.
    """
    field, equals, text = override.partition("=")
    override = shown(override)
    if not equals or not field:
        raise UsageError(
            f"--set {override}: write it as a.b=VALUE, for example --set mask.global_sparsity=0.2."
        )
    value = read_value(text, f"--set {override}")
    *parents, last = field.split(".")
    if len(parents) >= MAX_DEPTH:
        raise UsageError(f"--set {override[:60]}: deeper than {MAX_DEPTH} fields.")
    place: Any = tree
    location: Location = ()
    for part in parents:
        place, location = _step(place, part, override, location)
    if isinstance(place, dict):
        place[last] = value
        return (*location, last)
    if not isinstance(place, list):
        raise UsageError(
            f"--set {override}: {'.'.join(parents)} is a single value and has no field {last!r}."
        )
    index = _named(place, last)
    if index is None:
        index = _index(place, last, override)
        place[index] = value
        return (*location, index)
    place[index][last] = value
    return (*location, index, last)


def _step(place: Any, part: str, override: str, location: Location) -> tuple[Any, Location]:
    if isinstance(place, list):
        index = _named(place, part)
        if index is None:
            index = _index(place, part, override)
            return place[index], (*location, index)
        place, location = place[index], (*location, index)
    if isinstance(place, dict):
        if place.get(part) is None:
            place[part] = {}
        return place[part], (*location, part)
    raise UsageError(f"--set {override}: there is nothing below {part!r}.")


def _named(place: list[Any], part: str) -> int | None:
    """The index of the list entry with this key: stages can be named, as in stages.learn_masks.max_steps."""
    if part.isdecimal():
        return None
    return next((i for i, entry in enumerate(place) if isinstance(entry, dict) and part in entry), None)


def _index(place: list[Any], part: str, override: str) -> int:
    if part.isascii() and part.isdecimal() and len(part) < 10 and int(part) < len(place):
        return int(part)
    names = [str(name) for entry in place if isinstance(entry, dict) for name in entry]
    near = difflib.get_close_matches(part, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else " (counted from 0)."
    raise UsageError(f"--set {override}: {part!r} is not in a list of {len(place)} entries{hint}")
