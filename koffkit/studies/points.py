"""The points of a sweep: every combination of the values that some fields take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

from ..errors import UsageError

OPENING, CLOSING = "[{(", "]})"
MOST = 1000


def points(sets: Sequence[str]) -> dict[str, list[str]]:
    """From `a.b=V1,V2,...` to the overrides `a.b=V` of every point, by a name that can be a folder's.

    Args:
        sets: as on the command line. Commas within brackets or quotes do not separate.

    Raises:
        UsageError: one is not of this form, nothing varies, or there are too many points.
    """
    fields = dict(_field(text) for text in sets)
    varied = [field for field, values in fields.items() if len(values) > 1]
    if not varied:
        raise UsageError("--set: nothing varies; give at least one field several values, as a.b=0.1,0.2.")
    combinations = [dict(zip(fields, values, strict=True)) for values in product(*fields.values())]
    if len(combinations) > MOST:
        raise UsageError(f"--set: {len(combinations):,} points; use at most {MOST:,}.")
    places: dict[str, list[str]] = {}
    for values in combinations:
        name = _name({field: values[field] for field in varied})
        if name in places:
            raise UsageError(f"--set: two points are called {name}; give different values.")
        places[name] = [f"{key}={value}" for key, value in values.items()]
    return places


def _field(text: str) -> tuple[str, list[str]]:
    field, equals, values = text.partition("=")
    if not field or not equals:
        raise UsageError(f"--set {text}: write it as a.b=V1,V2, for example mask.global_sparsity=0.1,0.2.")
    return field, split(values)


def split(text: str) -> list[str]:
    """Parts between the commas that lie outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        depth += (character in OPENING) - (character in CLOSING)
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _name(values: dict[str, str]) -> str:
    short = [f"{field.rpartition('.')[2]}={value}" for field, value in values.items()]
    return re.sub(r"[^A-Za-z0-9._=+,-]+", "_", ",".join(short))[:120]
