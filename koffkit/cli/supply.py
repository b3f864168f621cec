"""Tokens that there are for training against those that it asks for, estimated without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ..errors import KoffkitError

if TYPE_CHECKING:
    from ..recipe.load import LoadedRecipe

Supply = Mapping[str, Mapping[str, "int | None"]]
"""By domain, and `retention`: `available` tokens, None where that is not known, and those `asked` for."""
OFTEN = 20
"""Times that training may read a domain's text before a warning says so."""


def text_supply(loaded: LoadedRecipe) -> Supply:
    """Tokens of each domain, from a sample of its text."""
    from ..data.estimate import available_tokens
    from ..hub import is_hub_id, locate
    from ..planning.estimates import asked_tokens

    base = loaded.recipe.base
    try:
        folder = None if is_hub_id(base.model, loaded.root) else locate(base.model, loaded.root)
        available = available_tokens(loaded, folder)
    except (KoffkitError, OSError):  # what is wrong has been said
        available = {}
    asked = asked_tokens(loaded.recipe)
    if "all domains" in available:  # they are found later
        kept = {"retention": asked.pop("retention")} if "retention" in asked else {}
        asked = {"all domains": sum(asked.values())} | kept
    return {name: {"available": available.get(name), "asked": count} for name, count in asked.items()}


def supply_rows(supply: Supply) -> Iterator[tuple[str, str]]:
    """What to print of each domain: its name, and a sentence."""
    for name, tokens in supply.items():
        available, asked = tokens["available"], tokens["asked"] or 0
        there = "unknown" if available is None else f"about {available:,}"
        times = f", read {asked / available:,.1f} times" if available else ""
        yield f"tokens of {name}", f"{there} there, {asked:,} asked for{times}"


def read_too_often(supply: Supply) -> Iterator[str]:
    """A warning for every domain whose text is read again and again."""
    for name, tokens in supply.items():
        available, asked = tokens["available"], tokens["asked"] or 0
        if available is not None and asked > OFTEN * available:
            times = asked / max(1, available)
            yield f"{name}: its {available:,} tokens are read {times:,.0f} times; more text or fewer steps."
