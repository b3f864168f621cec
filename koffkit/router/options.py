"""The options of stage `route`: what all kinds of router share, and what each kind brings along."""

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
"""Decorates the options class of stage `route`: it gets the options of every kind, side by side."""


def require_options_of_kind(route: Any) -> None:
    """Refuse an option of another kind. Values are compared with defaults, so that a recipe that was written
    out in full can be read again.

    Args:
        route: the options of stage `route`.

    Raises:
        ValueError: names the option and the kinds that have it.
    """
    kinds = options_of(plugins.ROUTERS, WHERE)
    defaults = {name: field.default for fields in kinds.values() for name, field in fields.items()}
    for name in sorted(defaults):
        owners = [kind for kind, fields in kinds.items() if name in fields]
        if route.kind not in owners and getattr(route, name) != defaults[name]:
            raise ValueError(
                f"{name} is an option of kind {' and '.join(owners)}, and this router is of kind {route.kind}"
            )
