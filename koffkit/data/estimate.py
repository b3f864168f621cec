"""How many tokens the text of a recipe has, from a sample of it: before a run, and without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..recipe.load import LoadedRecipe
from ..recipe.schema import AutoDomains, Source
from .parquet import number_of_rows
from .places import PACKED, Place, is_remote, kind_of, source_files
from .reading import chunks_of, lines_of
from .records import file_records

FILES, CHARACTERS, RECORDS = 8, 1 << 16, 200  # of each source, and of each file
BYTES_A_TOKEN = 4.0
"""Where the tokenizer is not at hand."""
UNPACKED = 3.5
"""Bytes of text that a byte of a packed file stands for."""


def available_tokens(loaded: LoadedRecipe, base: Path | None) -> dict[str, int | None]:
    """About how many tokens each domain and `retention` have for training; None for what is far away.

    Args:
        base: the folder of the base, for its tokenizer; None: four bytes count as a token.

    Raises:
        DataError: a source cannot be read.
    """
    recipe = loaded.recipe
    if isinstance(recipe.domains, AutoDomains):
        sources: dict[str, Source] = {"all domains": recipe.domains.auto}
    else:
        sources = dict(recipe.domains)
    if recipe.retention is not None:
        sources["retention"] = recipe.retention
    counter = _Counter(base)
    share = 1 - recipe.holdout
    counts = {name: _tokens(source, loaded.root, name, counter) for name, source in sources.items()}
    return {name: None if count is None else round(count * share) for name, count in counts.items()}


class _Counter:
    """Tokens of a text, by the tokenizer of the base if it has one that loads without transformers."""

    def __init__(self, base: Path | None) -> None:
        self._tokenizer: Any = None
        file = None if base is None else base / "tokenizer.json"
        if file is not None and file.is_file():
            from tokenizers import Tokenizer

            try:
                self._tokenizer = Tokenizer.from_file(str(file))
            except Exception:  # the library raises nothing more precise; loading it for training will tell
                self._tokenizer = None

    def __call__(self, text: str) -> float:
        if self._tokenizer is None:
            return len(text.encode("utf-8", "surrogatepass")) / BYTES_A_TOKEN
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _tokens(source: Source, root: Path, where: str, count: _Counter) -> float | None:
    if source.hub:
        return None
    patterns = source.text or source.jsonl or []
    if any(is_remote(name) for name in ([patterns] if isinstance(patterns, str) else patterns)):
        return None
    places = [Path(place) for place in source_files(source, root, where)]
    tokens, documents, total = 0.0, 0, 0.0
    for some in (  # rows of parquet files are counted, of other files the bytes
        [place for place in places if kind_of(place) != ".parquet"],
        [place for place in places if kind_of(place) == ".parquet"],
    ):
        found, sampled, size = _sampled(source, some, where, count)
        tokens, documents = tokens + found, documents + sampled
        total += found / size * sum(map(_size, some)) if size else 0.0
    if source.max_documents is None or source.text or not documents:
        return total
    return min(total, source.max_documents * tokens / documents)


def _sampled(source: Source, places: list[Path], where: str, count: _Counter) -> tuple[float, int, float]:
    """Tokens, documents and size of a sample."""
    tokens, documents, size = 0.0, 0, 0.0
    for place in places[:: max(1, len(places) // FILES)][:FILES]:
        for text, taken in _sample(source, place, where):
            tokens, documents, size = tokens + count(text) + 1, documents + 1, size + taken
    return tokens, documents, size


def _size(place: Path) -> float:
    """Bytes of a file once it is unpacked, about; rows of a parquet file."""
    if kind_of(place) == ".parquet":
        return number_of_rows(place)
    packed = place.suffix.lower() in PACKED
    return place.stat().st_size * (UNPACKED if packed else 1.0)


def _sample(source: Source, place: Place, where: str) -> Iterator[tuple[str, int]]:
    """Texts of a file's beginning, each with the bytes or rows of the file that it stands for."""
    if source.text:
        text = next(chunks_of(place, where, CHARACTERS), "")
        yield text, len(text.encode())
        return
    if kind_of(place) in ("", ".jsonl", ".ndjson"):
        for _, line in islice(lines_of(place, where), RECORDS):
            if line.strip():
                yield _text_of(source, _parsed(line)), len(line.encode("utf-8", "surrogatepass"))
        return
    for _, record in islice(file_records(place, source.record_field, where), RECORDS):
        yield _text_of(source, record), _taken(place, record)


def _taken(place: Place, record: Any) -> int:
    """Rows or, about, bytes of the file that a record takes."""
    if kind_of(place) == ".parquet":
        return 1
    if kind_of(place) == ".json":
        return len(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return sum(len(str(value).encode("utf-8", "surrogatepass")) + 1 for value in record.values())


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # the check of the sources names it
        return None


def _text_of(source: Source, record: Any) -> str:
    """What a record gives to learn from."""
    if not isinstance(record, dict):
        return ""
    if source.messages is None:
        return str(record.get(source.field, ""))
    messages = record.get(source.messages) or []
    return "\n".join(str(message.get("content") or "") for message in messages if isinstance(message, dict))
