"""The token files of a run, read again after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import DataError
from ..recipe.schema import Recipe, Source
from .corpus import RETENTION, Corpus
from .packing import STARTS_SUFFIX, PackedTokens
from .vocabulary import beginning_of_text


def prepared(recipe: Recipe, tokenizer: Any, folder: Path) -> Corpus:
    """The token files that a run has, as they are; the text they were made from need not be there.

    Raises:
        DataError: a file is missing.
    """
    begin = beginning_of_text(tokenizer) if recipe.begin_sequences else None

    def apart(path: Path) -> bool:  # runs of earlier versions do not say where documents begin
        return not recipe.attend_across_documents and path.with_suffix(STARTS_SUFFIX).is_file()

    def opened(name: str, source: Source, part: str) -> PackedTokens:
        path = folder / f"{name}.{part}.bin"
        if not path.is_file():
            raise DataError(f"{path}: missing; the run's tokens are needed. Copy the run as a whole.")
        return PackedTokens(path, masked=source.loss_on == "assistant", begin=begin, apart=apart(path))

    def kept(general: Source) -> PackedTokens | None:  # nor did they hold out retention text
        there = (folder / f"{RETENTION}.heldout.bin").is_file()
        return opened(RETENTION, general, "heldout") if there else None

    sources, general = recipe.sources, recipe.retention
    return Corpus(
        train={name: opened(name, source, "train") for name, source in sources.items()},
        heldout={name: opened(name, source, "heldout") for name, source in sources.items()},
        retention=None if general is None else opened(RETENTION, general, "train"),
        retention_heldout=None if general is None else kept(general),
    )
