"""From sources to token files: streamed, so that a source may be larger than memory, and cut by document."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from ..checkpoint.vocabulary import require_known
from ..errors import DataError
from ..recipe.load import LoadedRecipe
from ..recipe.schema import Source
from ..storage.files import make_folder, write_json
from .chat import Conversation, conversation_ids, render, require_template
from .holdout import with_sides
from .packing import PackedTokens
from .places import source_files
from .sources import conversations, documents, too_few_documents
from .tokens import StreamFiles, are_whole, read_index, same_sources, source_facts
from .vocabulary import beginning_of_text, end_of_document, vocabulary_digest

DOCUMENTS_AT_ONCE = 256
FORMAT = 3  # of token files
RETENTION = "_retention"
"""Name of the token files of retention text."""
Progress = Callable[[str], None]
Document = tuple[list[int], list[bool] | None]  # token ids, and which of them the assistant said


@dataclass(frozen=True)
class Corpus:
    """Token streams of a recipe.

    Args:
        train, heldout: by domain.
        retention, retention_heldout: of retention text; None without it. With a single document nothing of it
            is held out.
    """

    train: dict[str, PackedTokens]
    heldout: dict[str, PackedTokens]
    retention: PackedTokens | None
    retention_heldout: PackedTokens | None = None

    @property
    def domains(self) -> list[str]:
        return list(self.train)


def prepare(
    loaded: LoadedRecipe,
    tokenizer: Any,
    folder: Path,
    progress: Progress | None = None,
    *,
    warn: Progress | None = None,
    vocab_size: int | None = None,
    begun: bool = False,
) -> Corpus:
    """Tokenise every source into `folder`, or reuse what is there when nothing it depends on has changed.

    Args:
        warn: gets warnings about the text; None: they are dropped.
        vocab_size: rows of the model's embedding, which no token may exceed.
        begun: training has begun on the token files that are there, so the text must be the same.

    Raises:
        DataError: a source is missing, empty, shorter than one sequence, or changed since training began.
    """
    recipe = loaded.recipe
    make_folder(folder)
    silent: Progress = lambda text: None  # noqa: E731
    said, warned = progress or silent, warn or silent
    train, heldout = {}, {}
    for domain, source in recipe.sources.items():
        job = _Job(loaded, f"domains.{domain}", source, domain, tokenizer, folder, vocab_size, warned)
        train[domain], heldout[domain] = job.run(recipe.holdout, said, begun)
        _require_sequence(train[domain], recipe.sequence_length, f"domains.{domain}")
    retention = kept = None
    if recipe.retention is not None:
        job = _Job(loaded, "retention", recipe.retention, RETENTION, tokenizer, folder, vocab_size, warned)
        retention, kept = job.run(recipe.holdout, said, begun)
        _require_sequence(retention, recipe.sequence_length, "retention")
    return Corpus(train=train, heldout=heldout, retention=retention, retention_heldout=kept)


def _require_sequence(tokens: PackedTokens, length: int, where: str) -> None:
    if len(tokens) < length:
        raise DataError(
            f"{where}: {len(tokens)} training tokens, but one sequence needs sequence_length = {length}; "
            "add text or shorten sequence_length."
        )


@dataclass(frozen=True)
class _Job:
    """One source on its way to token files."""

    loaded: LoadedRecipe
    where: str
    source: Source
    name: str
    tokenizer: Any
    folder: Path
    vocab_size: int | None
    warn: Progress

    def run(self, holdout: float, progress: Progress, begun: bool) -> tuple[PackedTokens, PackedTokens]:
        paths = [self.folder / f"{self.name}.{part}.bin" for part in ("train", "heldout")]
        if self.source.messages is not None:
            require_template(self.tokenizer, f"{self.where}.messages")
        path = self.folder / f"{self.name}.json"
        index, settings = read_index(path), self._settings(holdout)
        places = [] if self.source.hub else source_files(self.source, self.loaded.root, self.where)
        same_text = same_sources(places, index.get("sources"))
        if begun and "sources" in index and not same_text:
            raise DataError(
                f"{self.where}: its text is not what this run began with "
                f"({_changed(index, places)}); restore it, or start anew with another --output."
            )
        same = same_text and index.get("settings") == settings
        if not (same and are_whole(self.folder, index.get("files"))):
            progress(f"tokenising {self.where}")
            path.unlink(missing_ok=True)
            sources = source_facts(places)
            counts = self._write(paths[0], paths[1], holdout)
            write_json(path, {"settings": settings, "sources": sources, **counts})
        recipe = self.loaded.recipe
        begin = beginning_of_text(self.tokenizer) if recipe.begin_sequences else None
        apart = not recipe.attend_across_documents
        train, heldout = (PackedTokens(path, masked=self._masked, begin=begin, apart=apart) for path in paths)
        return train, heldout

    def _settings(self, holdout: float) -> str:
        """Digest of everything but the text that token files depend on. Hub data sets are identified by name
        and revision of the recipe only."""
        text = json.dumps(
            [
                FORMAT,
                self.source.model_dump(exclude={"text", "jsonl"}),
                holdout,
                self.loaded.recipe.split_seed,
                vocabulary_digest(self.tokenizer),
                getattr(self.tokenizer, "chat_template", None),
                self._end,
            ]
        )
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _end(self) -> int | None:
        if self.source.messages is not None:
            return None
        end, remark = end_of_document(
            self.tokenizer, self.source.end_of_document, self.where, vocab_size=self.vocab_size
        )
        if remark:
            self.warn(remark)
        return end

    def _write(self, train: Path, heldout: Path, holdout: float) -> dict[str, Any]:
        """Split by a hash of the document's number (`holdout.with_sides`)."""
        sides: list[StreamFiles] = []
        try:
            sides += (StreamFiles(path, masked=self._masked) for path in (train, heldout))
            for held, (ids, mask) in with_sides(self._tokenised(), self.loaded.recipe.split_seed, holdout):
                sides[held].append(ids, mask)
            self._check(sides[0], sides[1], holdout)
            counts = {
                "documents": sides[0].documents + sides[1].documents,
                "heldout_documents": sides[1].documents,
            }
            return counts | {"files": sides[0].publish() | sides[1].publish()}
        finally:
            for side in sides:
                side.discard()

    def _check(self, train: StreamFiles, heldout: StreamFiles, holdout: float) -> None:
        documents = train.documents + heldout.documents
        if documents == 0:
            raise DataError(
                f"{self.where}: the source holds no documents; give it text, or remove the domain."
            )
        if holdout and documents < 2 and self.name != RETENTION:
            raise DataError(too_few_documents(self.where, self.source))
        if holdout * documents < 1 and holdout and documents > 1:
            kind = "files" if self.source.documents == "file" else "documents"
            self.warn(
                f"{self.where}: {documents} {kind}, of which holdout: {holdout:g} is less than one; "
                f"{heldout.documents} held out."
            )
        for part, side in (("training", train), ("held-out", heldout)):
            if side.learns_nothing:
                raise DataError(
                    f"{self.where}: loss_on: assistant, but no token of the {part} text is the assistant's "
                    f"(roles: {self._roles()}); name the role assistant, or use loss_on: all."
                )

    def _roles(self) -> str:
        """Who speaks in the first conversations, for an error."""
        some = islice(conversations(self.source, self.loaded.root, self.where), 100)
        roles = Counter(str(message["role"]) for conversation in some for message in conversation.messages)
        return ", ".join(role[:40] for role, _ in roles.most_common(6))

    @property
    def _masked(self) -> bool:
        """Whether the loss counts the assistant's tokens only."""
        return self.source.loss_on == "assistant"

    def _tokenised(self) -> Iterator[Document]:
        if self.source.messages is None:
            yield from ((ids, None) for ids in self._texts())
            return
        told = False
        for conversation in conversations(self.source, self.loaded.root, self.where):
            if conversation.tools and not told:
                told = True
                self._require_tools_in_template(conversation)
            ids, assistant = conversation_ids(self.tokenizer, conversation, mask=self._masked)
            require_known(ids, self.vocab_size, self.tokenizer, conversation.spot)
            yield ids, assistant

    def _require_tools_in_template(self, conversation: Conversation) -> None:
        if render(self.tokenizer, conversation) == render(self.tokenizer, conversation, tools=False):
            self.warn(
                f"{self.where}: the chat template leaves out the tools of a conversation "
                f"({conversation.spot}); calls are learned without the tools they call."
            )

    def _texts(self) -> Iterator[list[int]]:
        end, number = self._end, 0
        for group in _groups(documents(self.source, self.loaded.root, self.where), DOCUMENTS_AT_ONCE):
            for ids in self.tokenizer(group, verbose=False)["input_ids"]:
                number += 1
                require_known(ids, self.vocab_size, self.tokenizer, f"{self.where}: document {number}")
                yield [*ids, end] if end is not None else ids


def _changed(index: dict[str, Any], places: list[Any]) -> str:
    """The first file that is not the recorded one."""
    recorded = index.get("sources")
    if not isinstance(recorded, list) or len(recorded) != len(places):
        return f"{len(places)} files"
    pairs = zip(places, recorded, strict=True)
    return next((str(place) for place, before in pairs if not same_sources([place], [before])), "its order")


def _groups(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
