"""Where this machine has what its exports were made from. An export names no place on a disk; koffkit's cache
remembers them, for copies of the export on the machine that made it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..checkpoint.gguf import cache_folder
from ..errors import KoffkitError
from ..storage.files import make_folder, write_json
from ..storage.read_json import read_json
from ..strict import StrictModel


class Places(StrictModel):
    """The places of one export.

    Attributes:
        base: the folder of the unpruned model.
        root: where relative paths of the sources begin.
        sources: the fields of every source of text, by domain; `none`: retention text.
    """

    base: str
    root: str
    sources: dict[str, dict[str, Any]]


def _file(digest: str) -> Path:
    return cache_folder() / "places" / f"{digest}.json"


def remember(digest: str, base: Path, root: Path, recipe: Mapping[str, Any]) -> None:
    """Note the places of an export; where the cache cannot be written, nothing is noted.

    Args:
        digest: of its backbone.
        base: the folder of the unpruned model.
        root: where relative paths of the recipe begin.
        recipe: the recipe with the places on this machine.
    """
    sources = dict(recipe["domains"]) | ({"none": recipe["retention"]} if recipe.get("retention") else {})
    places = Places(base=str(base.resolve()), root=str(root.resolve()), sources=sources)
    file = _file(digest)
    with suppress(OSError, KoffkitError):
        make_folder(file.parent)
        write_json(file, places.model_dump(mode="json"))


def remembered(digest: str) -> Places | None:
    """What was noted of the export with this backbone; None: nothing, or nothing that can be read."""
    with suppress(KoffkitError, ValidationError, OSError):
        return Places.model_validate(read_json(_file(digest), remedy="remove it"))
    return None
