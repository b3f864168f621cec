"""The installed stages as recipes see them: their options and their order.

What a stage does is defined in `koffkit.stages`, which is reached through entry points: recipes do not import
it, and stages of other packages are treated alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

from .. import plugins
from ..errors import UsageError
from ..strict import StrictModel
from .declaration import StageDeclaration


def predecessors(stages: Mapping[str, StageDeclaration]) -> dict[str, set[str]]:
    """All stages that must come earlier, directly or indirectly, by stage."""
    direct = {
        name: {other for other in stage.after if other in stages}
        | {other for other, declared in stages.items() if name in declared.before}
        | {other for other, declared in stages.items() if declared.learns_masks and not stage.learns_masks}
        for name, stage in stages.items()
    }
    earlier: dict[str, set[str]] = {}
    for name in _sorted(direct):
        earlier[name] = direct[name].union(*(earlier[other] for other in direct[name]))
    return earlier


def in_order(stages: Mapping[str, StageDeclaration]) -> list[str]:
    """An order that satisfies all declarations; alphabetical where they leave it open.

    Raises:
        UsageError: the declarations contradict each other.
    """
    return _sorted(predecessors(stages))


def _sorted(earlier: Mapping[str, Iterable[str]]) -> list[str]:
    try:
        return list(
            TopologicalSorter({name: sorted(earlier[name]) for name in sorted(earlier)}).static_order()
        )
    except CycleError as error:
        raise UsageError(
            f"{plugins.STAGES}: the order of {', '.join(sorted(set(error.args[1])))} contradicts itself; "
            "uninstall the package that brought one of them."
        ) from None


def _installed() -> dict[str, StageDeclaration]:
    stages: dict[str, StageDeclaration] = {}
    for name in plugins.names(plugins.STAGES):
        stages[name] = plugins.load(plugins.STAGES, name, "stages")()
        if stages[name].name != name:
            raise UsageError(
                f"{plugins.STAGES}: the entry point {name} leads to stage {stages[name].name}; both must "
                "have one name."
            )
    if not stages:
        raise UsageError(f"{plugins.STAGES}: no stage is installed, not even our own; install koffkit again.")
    return {name: stages[name] for name in in_order(stages)}


KINDS = _installed()
"""Every installed stage by name, in an order that satisfies their declarations."""

STAGES: dict[str, type[StrictModel]] = {name: kind.options for name, kind in KINDS.items()}
"""The options of every stage, in the same order."""


def order_error(names: list[str]) -> str | None:
    """What is wrong with the order of a recipe's stages; None: nothing."""
    earlier, first = predecessors(KINDS), [name for name, kind in KINDS.items() if kind.learns_masks]
    places = {name: place for place, name in enumerate(names)}
    fits = len(places) == len(names) and [name in first for name in names] == [
        place == 0 for place in range(len(names))
    ]
    if fits and all(places[other] < places[name] for name in names for other in earlier[name] & set(names)):
        return None
    others = ", ".join(name for name in KINDS if name not in first)
    return (
        f"stages must be {' or '.join(first)}, then any of {others}, in that order and each once "
        f"(found: {names})"
    )


__all__ = ["KINDS", "STAGES", "in_order", "order_error", "predecessors"]
