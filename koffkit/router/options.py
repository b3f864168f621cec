"""The options of stage `route` that depend on the kind of router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from .. import plugins
from ..recipe.plugin_options import options_of, with_options_of

WHERE = "stages.route.kind"

if TYPE_CHECKING:
    RouterKind = str
else:  # whatever is installed
    RouterKind = Literal[tuple(plugins.names(plugins.ROUTERS))]

with_kind_options = with_options_of(plugins.ROUTERS, WHERE)
"""Decorates the options class of stage `route` with the options of every kind, side by side."""


def require_options_of_kind(route: Any) -> None:
    """Refuse an option of another kind unless it has its default value, which recipes written out in full
    contain.

    Args:
        route: the options of stage `route`.

    Raises:
        ValueError: there is one; the text names the kinds that have it.
    """
    kinds = options_of(plugins.ROUTERS, WHERE)
    defaults = {name: field.default for fields in kinds.values() for name, field in fields.items()}
    for name in sorted(defaults):
        owners = [kind for kind, fields in kinds.items() if name in fields]
        if route.kind not in owners and getattr(route, name) != defaults[name]:
            raise ValueError(
                f"{name} is an option of kind {' and '.join(owners)}, and this router is of kind {route.kind}"
            )
