"""From sources to token files: streamed, so that a source may be larger than memory, and cut by document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import DataError
from ..recipe.load import LoadedRecipe
from ..recipe.schema import Source
from ..storage.files import make_folder, replacing_file, write_json
from .chat import conversation_ids, require_template
from .packing import MASK_SUFFIX, PackedTokens
from .sources import conversations, documents, source_files

DOCUMENTS_AT_ONCE = 256
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Corpus:
    """Token streams of a recipe."""

    train: dict[str, PackedTokens]
    heldout: dict[str, PackedTokens]
    retention: PackedTokens | None

    @property
    def domains(self) -> list[str]:
        return list(self.train)


def prepare(loaded: LoadedRecipe, tokenizer: Any, folder: Path, progress: Progress | None = None) -> Corpus:
    """Tokenise every source into `folder`, or reuse what is there when nothing it depends on has changed.

    Raises:
        DataError: a source is missing, empty, or shorter than one sequence.
    """
    recipe = loaded.recipe
    make_folder(folder)
    train, heldout = {}, {}
    for domain, source in recipe.sources.items():
        job = _Job(loaded, f"domains.{domain}", source, domain, tokenizer, folder)
        train[domain], heldout[domain] = job.run(recipe.holdout, progress)
        _require_sequence(train[domain], recipe.sequence_length, f"domains.{domain}")
    retention = None
    if recipe.retention is not None:
        job = _Job(loaded, "retention", recipe.retention, "_retention", tokenizer, folder)
        retention, _ = job.run(0.0, progress)
        _require_sequence(retention, recipe.sequence_length, "retention")
    return Corpus(train=train, heldout=heldout, retention=retention)


def _require_sequence(tokens: PackedTokens, length: int, where: str) -> None:
    if len(tokens) < length:
        raise DataError(
            f"{where}: {len(tokens)} training tokens, but one sequence needs sequence_length = {length}; "
            "add text or shorten sequence_length."
        )


@dataclass(frozen=True)
class _Job:
    loaded: LoadedRecipe
    where: str
    source: Source
    name: str
    tokenizer: Any
    folder: Path

    def run(self, holdout: float, progress: Progress | None) -> tuple[PackedTokens, PackedTokens]:
        paths = [self.folder / f"{self.name}.{part}.bin" for part in ("train", "heldout")]
        if self.source.messages is not None:
            require_template(self.tokenizer, f"{self.where}.messages")
        index = self.folder / f"{self.name}.json"
        digest = self._digest(holdout)
        there = all(path.with_suffix(suffix).is_file() for path in paths for suffix in self._suffixes)
        if not (there and index.is_file() and json.loads(index.read_text()).get("digest") == digest):
            if progress is not None:
                progress(f"tokenising {self.where}")
            index.unlink(missing_ok=True)
            counts = self._write(paths[0], paths[1], holdout)
            write_json(index, {"digest": digest, **counts})
        masked = len(self._suffixes) > 1
        return PackedTokens(paths[0], masked=masked), PackedTokens(paths[1], masked=masked)

    def _digest(self, holdout: float) -> str:
        """Everything the token files depend on. Hub data sets are identified by name and revision of the
        recipe only."""
        files = [] if self.source.hub else source_files(self.source, self.loaded.root, self.where)
        facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        vocabulary = hashlib.sha256(
            json.dumps(sorted(self.tokenizer.get_vocab().items())).encode()
        ).hexdigest()
        text = json.dumps(
            [
                facts,
                self.source.model_dump(),
                holdout,
                self.loaded.recipe.seed,
                vocabulary,
                getattr(self.tokenizer, "chat_template", None),
            ]
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def _write(self, train: Path, heldout: Path, holdout: float) -> dict[str, int]:
        """Split by a hash of the document's number; when that holds out nothing, the last document is held
        out."""
        finals = [path.with_suffix(suffix) for path in (train, heldout) for suffix in self._suffixes]
        counts = {"documents": 0, "heldout_documents": 0}
        with ExitStack() as stack:
            files = [stack.enter_context(replacing_file(path)) for path in finals]
            first, second = files[: len(self._suffixes)], files[len(self._suffixes) :]
            last: list[bytes] = []
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
            self._check(counts, holdout)
        return counts

    def _check(self, counts: dict[str, int], holdout: float) -> None:
        if counts["documents"] == 0:
            raise DataError(
                f"{self.where}: the source holds no documents; give it text, or remove the domain."
            )
        if holdout and counts["documents"] < 2:
            raise DataError(
                f"{self.where}: 1 document; at least 2 are needed, one of them held out. In a text file a "
                "blank line separates documents."
            )

    @property
    def _suffixes(self) -> list[str]:
        """Of the files of one stream: tokens, and for conversations which of them are the assistant's."""
        return [".bin", MASK_SUFFIX] if self.source.loss_on == "assistant" else [".bin"]

    def _tokenised(self) -> Iterator[list[bytes]]:
        """What each document adds to every file."""
        if self.source.messages is None:
            yield from ([np.asarray(ids, dtype=np.int32).tobytes()] for ids in self._texts())
            return
        for number, messages in enumerate(conversations(self.source, self.loaded.root, self.where), 1):
            ids, assistant = conversation_ids(
                self.tokenizer, messages, f"{self.where}: record {number}", mask=len(self._suffixes) > 1
            )
            data = [
                np.asarray(ids, dtype=np.int32).tobytes(),
                np.asarray(assistant, dtype=np.uint8).tobytes(),
            ]
            yield data[: len(self._suffixes)]

    def _texts(self) -> Iterator[list[int]]:
        end = self.tokenizer.eos_token_id
        for group in _groups(documents(self.source, self.loaded.root, self.where), DOCUMENTS_AT_ONCE):
            for ids in self.tokenizer(group, verbose=False)["input_ids"]:
                yield [*ids, end] if end is not None else ids


def _append(files: Sequence[IO[bytes]], data: list[bytes]) -> None:
    for file, part in zip(files, data, strict=False):  # nothing yet: an empty list
        file.write(part)


def held_out(seed: int, number: int, holdout: float) -> bool:
    """Whether the `number`-th document of a source is held out."""
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < holdout * 2**64


def split_documents(texts: Iterable[str], seed: int, share: float, where: str) -> tuple[list[str], list[str]]:
    """Documents to learn from and held-out ones, the same that perplexity is measured on; at least one on
    either side.

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
