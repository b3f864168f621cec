"""Documents of a recipe's source, one at a time: text, globs, JSON lines, compressed files, hub data sets."""

from __future__ import annotations

import bz2
import glob
import gzip
import json
import lzma
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from ..embedded import PREFIX
from ..embedded import path as embedded_path
from ..errors import DataError
from ..recipe.schema import Source
from .chat import Message, check_messages, user_text


def source_files(source: Source, root: Path, where: str) -> list[Path]:
    """The files of a text or jsonl source, sorted within each pattern; relative to the recipe, else to the
    working folder.

    Raises:
        DataError: a pattern matches no file.
    """
    patterns = source.text or source.jsonl or []
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = _matches(pattern, root)
        if not matches:
            raise DataError(
                f"{where}: no file matches {pattern!r}, looked for in {root} and {Path.cwd()}; "
                "correct the path (relative paths start at the recipe's folder)."
            )
        found.extend(path for path in matches if path not in found)
    return found


def file_source(pattern: str, field: str = "text") -> Source:
    """The source that a path or glob on the command line means; `field` is of JSON lines."""
    lines = {".jsonl", ".json"} & set(Path(pattern).suffixes)
    return Source(jsonl=pattern, field=field) if lines else Source(text=pattern)


def _matches(pattern: str, root: Path) -> list[Path]:
    if pattern.startswith(PREFIX):
        try:
            return [embedded_path(pattern.removeprefix(PREFIX))]
        except FileNotFoundError as error:
            raise DataError(str(error)) from None
    for folder in (root, Path.cwd()):
        matches = sorted(Path(match) for match in glob.glob(str(folder / pattern), recursive=True))
        files = [path for path in matches if path.is_file()]
        if files:
            return files
    return []


def documents(source: Source, root: Path, where: str) -> Iterator[str]:
    """Yield documents in order, of conversations what the user said; `where` names the recipe field in
    errors.

    Raises:
        DataError: a file is missing, damaged, not UTF-8, or a record lacks the field.
    """
    if source.text:
        found = _texts(source, root, where)
    elif source.messages is not None:
        found = (user_text(messages) for messages in conversations(source, root, where))
    else:
        found = (str(record[source.field]) for record in records(source, root, where))
    return islice(found, source.max_documents)


def conversations(source: Source, root: Path, where: str) -> Iterator[list[Message]]:
    """Yield the conversations of a source with `messages`.

    Raises:
        DataError: a record's field holds something else.
    """
    assert source.messages is not None
    found = enumerate(records(source, root, where), 1)
    return (
        check_messages(record[source.messages], f"{where}: record {number}")
        for number, record in islice(found, source.max_documents)
    )


def records(source: Source, root: Path, where: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a jsonl or hub source; each has the source's field."""
    if source.hub:
        yield from _hub(source, where)
        return
    for path in source_files(source, root, where):
        for number, line in enumerate(_lines(path, where), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}:{number}: not valid JSON ({error.msg}); one object a line is expected."
                ) from None
            yield _checked(record, source.record_field, f"{path}:{number}")


def _checked(record: Any, field: str, place: str) -> dict[str, Any]:
    if not isinstance(record, dict) or field not in record:
        there = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise DataError(
            f"{place}: no field {field!r}; found: {there}. Name the field that holds the text with `field:`."
        )
    return record


def _texts(source: Source, root: Path, where: str) -> Iterator[str]:
    for path in source_files(source, root, where):
        paragraph: list[str] = []
        for line in _lines(path, where):
            if line.strip():
                paragraph.append(line.rstrip("\n"))
            elif paragraph:
                yield "\n".join(paragraph)
                paragraph = []
        if paragraph:
            yield "\n".join(paragraph)


def _lines(path: Path, where: str) -> Iterator[str]:
    try:
        with _open(path) as file:
            yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"{path} ({where}): not UTF-8 text ({error.reason}); convert it to UTF-8.") from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(
            f"{path} ({where}): cannot be read: {error or type(error).__name__}; is the file whole?"
        ) from None


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if path.suffix == ".bz2":
        return bz2.open(path, "rt", encoding="utf-8")
    if path.suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise DataError(f"{path}: reading .zst needs the extra: pip install 'koffkit[data]'.") from None
        stream: IO[str] = zstandard.open(path, "rt", encoding="utf-8")
        return stream
    return path.open(encoding="utf-8")


def _hub(source: Source, where: str) -> Iterator[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(f"{where}: hub data sets need the extra: pip install 'koffkit[data]'.") from None
    try:
        rows = load_dataset(source.hub, source.config_name, split=source.split, streaming=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: hub data set {source.hub!r}: {error}") from None
    for number, record in enumerate(rows, 1):
        yield _checked(record, source.record_field, f"{source.hub} record {number}")
