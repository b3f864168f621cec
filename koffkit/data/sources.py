"""Documents and conversations of a recipe's source, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ..errors import DataError
from ..recipe.schema import Source
from .chat import Conversation, check_conversation
from .places import Place, file_source, source_files
from .reading import MAX_CHARACTERS, lines_of
from .records import records, text_field


def documents(source: Source, root: Path, where: str) -> Iterator[str]:
    """Yield documents in order; for a conversation, what the user said. `where` names the recipe field in
    errors.

    Raises:
        DataError: a file is missing, damaged, not UTF-8, or a record lacks the field.
    """
    if source.text:
        texts = _texts(source, root, where)
    elif source.messages is not None:
        texts = (conversation.user_text for conversation in conversations(source, root, where))
    else:
        texts = (text_field(record, source.field, spot) for spot, record in records(source, root, where))
    return islice(texts, source.max_documents)


def conversations(source: Source, root: Path, where: str) -> Iterator[Conversation]:
    """Yield the conversations of a source with `messages`.

    Args:
        source: a source of the recipe.
        root: the folder that relative paths start from, before the working folder.
        where: the recipe field of the source, for errors.

    Raises:
        DataError: a record's field holds something else.
    """
    assert source.messages is not None
    for spot, record in islice(records(source, root, where), source.max_documents):
        yield check_conversation(record[source.messages], record.get(source.tools), spot)


def too_few_documents(where: str, source: Source) -> str:
    """What to say of a domain with one document, so that none can be held out."""
    if source.documents == "file":
        return (
            f"{where}: 1 file, and documents: file holds out whole files; give it another file, or say "
            "documents: blank_line, which holds out parts of a file."
        )
    return (
        f"{where}: 1 document; at least 2 are needed, one of them held out. In a text file a blank line "
        "separates documents."
    )


def _texts(source: Source, root: Path, where: str) -> Iterator[str]:
    for place in source_files(source, root, where):
        if source.documents == "line":
            yield from (line.rstrip("\n") for _, line in lines_of(place, where) if line.strip())
        else:
            yield from _paragraphs(place, where, whole=source.documents == "file")


def _paragraphs(place: Place, where: str, *, whole: bool) -> Iterator[str]:
    """The documents of a text file, which blank lines separate; `whole`: the file is one."""
    paragraph: list[str] = []
    size = 0
    for number, line in lines_of(place, where):
        if line.strip() or (whole and paragraph):
            paragraph.append(line.rstrip("\n"))
            size += len(line)
            if size > MAX_CHARACTERS:
                raise DataError(
                    f"{place}:{number} ({where}): a document of more than {MAX_CHARACTERS:,} characters; "
                    "separate documents by blank lines, or say `documents: line`."
                )
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph, size = [], 0
    text = "\n".join(paragraph).rstrip() if whole else "\n".join(paragraph)
    if text:
        yield text


__all__ = ["conversations", "documents", "file_source", "records", "source_files", "too_few_documents"]
