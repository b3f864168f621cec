"""Records of JSON lines, JSON arrays, csv, parquet and hub data sets, each with its file and line."""

from __future__ import annotations

import csv
import gc
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..recipe.schema import Source
from .parquet import parquet_records
from .places import Place, kind_of, source_files
from .reading import chunks_of, lines_of

Record = tuple[str, dict[str, Any]]  # its place, `file:line`, and its fields
_SPACE = re.compile(r"\s+")
MAX_RECORD = 8 * 2**20  # characters of one record: Python's objects take far more than their text


def records(source: Source, root: Path, where: str) -> Iterator[Record]:
    """Yield the objects of a jsonl or hub source; each has the source's field.

    Args:
        source: a source of the recipe.
        root: the folder that relative paths start from, before the working folder.
        where: the recipe field of the source, for errors.

    Raises:
        DataError: a file cannot be read, a record is damaged or lacks the field; with file and line.
    """
    if source.hub:
        yield from _hub(source, where)
        return
    for place in source_files(source, root, where):
        yield from file_records(place, source.record_field, where)


def file_records(place: Place, field: str, where: str) -> Iterator[Record]:
    """The records of one file, read as its suffix says."""
    kind = kind_of(place)
    if kind in (".csv", ".tsv"):
        rows = _table(place, where, "\t" if kind == ".tsv" else ",")
    elif kind == ".parquet":
        rows = parquet_records(place, where, MAX_RECORD)
    elif kind == ".json":
        rows = _json(place, where)
    else:
        rows = _lines(place, where)
    for spot, record in rows:
        yield spot, checked(record, field, spot)


def text_field(record: dict[str, Any], field: str, spot: str) -> str:
    """The text in a field of a record.

    Args:
        record: the record.
        field: the field's name.
        spot: the record's file and line, for errors.

    Raises:
        DataError: it is not text, or holds half a character.
    """
    value = record[field]
    if not isinstance(value, str):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise DataError(
            f"{spot}: field {field!r} is {kind}, not text; leave the record out, or name another field."
        )
    require_whole_characters(value, spot, field)
    return value


def require_whole_characters(text: str, spot: str, field: str) -> None:
    """Refuse text with a lone surrogate, such as half of an emoji that was cut, which no tokenizer accepts.

    Raises:
        DataError: there is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise DataError(
            f"{spot}: field {field!r} holds half a character (a lone surrogate, {half}); repair or remove "
            "the record."
        ) from None


def checked(record: Any, field: str, spot: str) -> dict[str, Any]:
    """Check that a record is an object with the field.

    Args:
        record: the parsed value.
        field: the field that it must have.
        spot: its file and line, for errors.

    Raises:
        DataError: it is not.
    """
    if not isinstance(record, dict) or field not in record:
        there = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        shown = there if len(there) <= 200 else f"{there[:197]}..."
        raise DataError(
            f"{spot}: no field {field!r}; found: {shown}. Name the field that holds the text with `field:`."
        )
    return record


def parse(text: str, spot: str) -> Any:
    """Parse a JSON value.

    Raises:
        DataError: it is not valid JSON, or is nested too deeply for Python.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{spot}: not valid JSON ({error.msg}); one object a line is expected.") from None
    except RecursionError:
        raise DataError(f"{spot}: JSON that is nested too deeply; repair or remove the record.") from None
    except ValueError as error:
        raise DataError(f"{spot}: not valid JSON ({str(error).partition(';')[0]}).") from None


def _lines(place: Place, where: str) -> Iterator[tuple[str, Any]]:
    for number, line in lines_of(place, where, MAX_RECORD):
        if line.strip():
            yield f"{place}:{number}", parse(line, f"{place}:{number}")


def _json(place: Place, where: str) -> Iterator[tuple[str, Any]]:
    """A .json file: an array of records, or one record a line."""
    opening = next((line for _, line in lines_of(place, where, MAX_RECORD) if line.strip()), "")
    if not opening.lstrip().startswith("["):
        yield from _lines(place, where)
        return
    yield from _Array(place, where).records()


class _Array:
    """The values of a JSON array, one at a time, of a file that may be larger than memory."""

    def __init__(self, place: Place, where: str) -> None:
        self._place, self._chunks = place, chunks_of(place, where)
        self._text, self._at, self._line = "", 0, 1

    def records(self) -> Iterator[tuple[str, Any]]:
        self._take("[")
        if self._peek() == "]":
            self._take("]")
        else:
            yield self._value()
            while self._peek() == ",":
                self._take(",")
                yield self._value()
            self._take("]")
        if self._peek():
            raise self._damaged("text after the end of the array")

    def _value(self) -> tuple[str, Any]:
        self._peek()
        spot = f"{self._place}:{self._line}"
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, self._at)
            except RecursionError:
                raise self._damaged("JSON that is nested too deeply") from None
            except ValueError as error:
                if len(self._text) - self._at > MAX_RECORD or not self._fill():
                    reason = getattr(error, "msg", "a number of too many digits")
                    raise self._damaged(f"not a valid JSON array from here on ({reason})") from None
            else:
                self._skip(end)
                return spot, value

    def _peek(self) -> str:
        """The next character that is not a space; empty at the end."""
        while True:
            blank = _SPACE.match(self._text, self._at)
            self._skip(blank.end() if blank else self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def _take(self, character: str) -> None:
        if self._peek() != character:
            raise self._damaged(f"not a valid JSON array; {character!r} is expected here")
        self._skip(self._at + 1)

    def _skip(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _fill(self) -> bool:
        more = next(self._chunks, "")
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)

    def _damaged(self, what: str) -> DataError:
        return DataError(f"{self._place}:{self._line}: {what}; is the file whole?")


def _table(place: Place, where: str, delimiter: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(MAX_RECORD)
    lines = (line for _, line in lines_of(place, where, MAX_RECORD))
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    try:
        names = reader.fieldnames or []
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{place}:1 ({where}): two columns are named {twice!r}; rename one.")
        for record in reader:
            spot = f"{place}:{reader.line_num}"
            if None in record:
                raise DataError(f"{spot}: more fields than the {len(reader.fieldnames or [])} of the header.")
            yield spot, record
    except csv.Error as error:
        raise DataError(f"{place}:{reader.line_num} ({where}): not valid csv ({error}).") from None


def _hub(source: Source, where: str) -> Iterator[Record]:
    spot = f"{where}: hub data set {source.hub!r}"
    rows = _dataset(spot, source.hub, source.config_name, split=source.split)
    for number, record in enumerate(rows, 1):
        yield (
            f"{source.hub} record {number}",
            checked(record, source.record_field, f"{source.hub} record {number}"),
        )


def _dataset(spot: str, *names: Any, **options: Any) -> Iterator[Any]:
    """Stream the records of a data set."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(f"{spot}: needs the extra: pip install 'koffkit[data]'.") from None
    try:
        yield from load_dataset(*names, **options, streaming=True)
    except (GeneratorExit, DataError, MemoryError):
        raise
    except Exception as error:  # its own, pyarrow's and those of every file system
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{spot}: cannot be read: {reason}") from None
    finally:
        gc.collect()  # else readers that were not read to their end abort the process when it ends
