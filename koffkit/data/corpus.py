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

import numpy as np

from ..errors import DataError
from ..recipe.load import LoadedRecipe
from ..recipe.schema import Recipe, Source
from ..storage.files import make_folder, write_json
from .chat import Conversation, conversation_ids, render, require_template
from .packing import MASK_SUFFIX, PackedTokens
from .places import source_files
from .sources import conversations, documents
from .tokens import TokenFile, are_whole, read_index, same_sources, source_facts
from .vocabulary import beginning_of_text, end_of_document, require_known

DOCUMENTS_AT_ONCE = 256
FORMAT = 2  # of token files
RETENTION = "_retention"
"""Name of the token files of retention text."""
Progress = Callable[[str], None]
Stream = list[np.ndarray[Any, Any]]  # of one document: token ids and, if the loss is masked, its mask


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


def prepared(recipe: Recipe, tokenizer: Any, folder: Path) -> Corpus:
    """The token files that a run has, as they are; the text they were made from need not be there.

    Raises:
        DataError: a file is missing.
    """
    begin = beginning_of_text(tokenizer) if recipe.begin_sequences else None

    def opened(name: str, source: Source, part: str) -> PackedTokens:
        path = folder / f"{name}.{part}.bin"
        if not path.is_file():
            raise DataError(f"{path}: missing; the run's tokens are needed. Copy the run as a whole.")
        return PackedTokens(path, masked=source.loss_on == "assistant", begin=begin)

    sources, general = recipe.sources, recipe.retention
    return Corpus(
        train={name: opened(name, source, "train") for name, source in sources.items()},
        heldout={name: opened(name, source, "heldout") for name, source in sources.items()},
        retention=None if general is None else opened(RETENTION, general, "train"),
        retention_heldout=None if general is None else opened(RETENTION, general, "heldout"),
    )


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
        same = index.get("settings") == settings
        if same and not same_sources(places, index.get("sources")):
            same = False
            if begun:
                raise DataError(
                    f"{self.where}: its text is not what this run began with "
                    f"({_changed(index, places)}); restore it, or start anew with another --output."
                )
        if not (same and are_whole(self.folder, index.get("files"))):
            progress(f"tokenising {self.where}")
            path.unlink(missing_ok=True)
            sources = source_facts(places)
            counts = self._write(paths[0], paths[1], holdout)
            write_json(path, {"settings": settings, "sources": sources, **counts})
        masked = len(self._suffixes) > 1
        begin = beginning_of_text(self.tokenizer) if self.loaded.recipe.begin_sequences else None
        train, heldout = (PackedTokens(path, masked=masked, begin=begin) for path in paths)
        return train, heldout

    def _settings(self, holdout: float) -> str:
        """Digest of everything but the text that token files depend on. Hub data sets are identified by name
        and revision of the recipe only."""
        vocabulary = hashlib.sha256(
            json.dumps(sorted(self.tokenizer.get_vocab().items())).encode()
        ).hexdigest()
        text = json.dumps(
            [
                FORMAT,
                self.source.model_dump(exclude={"text", "jsonl"}),
                holdout,
                self.loaded.recipe.seed,
                vocabulary,
                getattr(self.tokenizer, "chat_template", None),
                self._end,
            ]
        )
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _end(self) -> int | None:
        if self.source.messages is not None:
            return None
        end, remark = end_of_document(self.tokenizer, self.source.end_of_document, self.where)
        if remark:
            self.warn(remark)
        return end

    def _write(self, train: Path, heldout: Path, holdout: float) -> dict[str, Any]:
        """Split by a hash of the document's number; when that holds out nothing, the last document is held
        out."""
        files: list[TokenFile] = []
        counts = {"documents": 0, "heldout_documents": 0}
        try:
            for path in (train, heldout):
                files += [TokenFile(path.with_suffix(suffix)) for suffix in self._suffixes]
            first, second = files[: len(self._suffixes)], files[len(self._suffixes) :]
            last: Stream = []
            for number, data in enumerate(self._tokenised()):
                counts["documents"] += 1
                if held_out(self.loaded.recipe.seed, number, holdout):
                    counts["heldout_documents"] += 1
                    _append(second, data)
                else:
                    _append(first, last)
                    last = data
            if holdout and not counts["heldout_documents"] and counts["documents"] > 1:
                counts["heldout_documents"] = 1
                _append(second, last)
            else:
                _append(first, last)
            self._check(counts, holdout, files)
            return counts | {"files": {file.final.name: file.publish() for file in files}}
        finally:
            for file in files:
                file.discard()

    def _check(self, counts: dict[str, int], holdout: float, files: list[TokenFile]) -> None:
        if counts["documents"] == 0:
            raise DataError(
                f"{self.where}: the source holds no documents; give it text, or remove the domain."
            )
        if holdout and counts["documents"] < 2 and self.name != RETENTION:
            raise DataError(
                f"{self.where}: 1 document; at least 2 are needed, one of them held out. In a text file a "
                "blank line separates documents."
            )
        for file in files:
            if file.final.suffix == MASK_SUFFIX and file.size and not file.total:
                part = "held-out" if file is files[-1] else "training"
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
    def _suffixes(self) -> list[str]:
        """Suffixes of the files of one stream: tokens and, for conversations, which are the assistant's."""
        return [".bin", MASK_SUFFIX] if self.source.loss_on == "assistant" else [".bin"]

    def _tokenised(self) -> Iterator[Stream]:
        """The tokens, and the mask if there is one, of every document."""
        if self.source.messages is None:
            yield from ([np.asarray(ids, dtype=np.int32)] for ids in self._texts())
            return
        told = False
        for conversation in conversations(self.source, self.loaded.root, self.where):
            if conversation.tools and not told:
                told = True
                self._require_tools_in_template(conversation)
            ids, assistant = conversation_ids(self.tokenizer, conversation, mask=len(self._suffixes) > 1)
            require_known(ids, self.vocab_size, self.tokenizer, conversation.spot)
            data: Stream = [np.asarray(ids, dtype=np.int32), np.asarray(assistant, dtype=np.uint8)]
            yield data[: len(self._suffixes)]

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


def _append(files: list[TokenFile], data: Stream) -> None:
    for file, part in zip(files, data, strict=False):  # nothing yet: an empty list
        file.append(part)


def held_out(seed: int, number: int, holdout: float) -> bool:
    """Whether the `number`-th document of a source is held out."""
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < holdout * 2**64


def split_documents(texts: Iterable[str], seed: int, share: float, where: str) -> tuple[list[str], list[str]]:
    """Split documents into those to learn from and held-out ones, the same that perplexity is measured on; at
    least one on either side.

    Args:
        texts: documents.
        seed: the recipe's seed.
        share: share to hold out, in (0, 1).
        where: the source's field, for errors.

    Raises:
        DataError: there are fewer than two.
    """
    sides: tuple[list[str], list[str]] = ([], [])
    for number, text in enumerate(texts):
        sides[held_out(seed, number, share)].append(text)
    for short, long in (sides, sides[::-1]):
        if not short:
            if len(long) < 2:
                raise DataError(
                    f"{where}: the router needs at least 2 documents, found {len(long)}; add text."
                )
            short.append(long.pop())
    return sides


def _groups(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
