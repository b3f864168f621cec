"""Plug-ins: everything that is registered by entry point, whether by koffkit or by another package.

Each group is one kind of plug-in. The name of an entry point is what users write in recipes and on the
command line, its value the object that the group's `Protocol` or base class describes. Plug-ins are imported
on first use.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .errors import UsageError

ARCHITECTURES = "koffkit.architectures"
STRUCTURES = "koffkit.structures"
LOSSES = "koffkit.losses"
STAGES = "koffkit.stages"
ROUTERS = "koffkit.routers"
SELECTORS = "koffkit.selectors"
EXPORTERS = "koffkit.exporters"


@cache
def installed(group: str) -> dict[str, EntryPoint]:
    """The installed plug-ins of a group, by name in alphabetical order; nothing is imported.

    Raises:
        UsageError: two packages register the same name.
    """
    points: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        other = points.setdefault(point.name, point)
        if other.value != point.value:
            raise UsageError(
                f"{group}: {point.name} is claimed by {other.value} and by {point.value}; uninstall one of "
                "the two packages."
            )
    return points


def names(group: str) -> list[str]:
    """The names of the installed plug-ins of a group."""
    return list(installed(group))


@cache
def load(group: str, name: str, field: str) -> Any:
    """Import and return a plug-in by name.

    Args:
        group: one of the constants of this module.
        field: where the user wrote the name, for the error: `--format`, `distill.loss`.

    Raises:
        UsageError: no plug-in of the group has the name, or its package cannot be imported; the text lists
            the names.
    """
    points = installed(group)
    if name not in points:
        near = get_close_matches(name, points, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(
            f"{field}: {name} is not installed; there is {', '.join(points) or 'nothing of this kind'}.{hint}"
        )
    try:
        return points[name].load()
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"{field}: {name} cannot be imported from {points[name].value} ({error}); reinstall its package."
        ) from error
