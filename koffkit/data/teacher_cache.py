"""What the teacher says of every sequence of a text, on disk: its most likely tokens with their
log-probabilities, and how much is left for all others.

A stream has one file, memory-mapped, with a record of fixed size for every sequence, and an index that says
what it was made from. A file begins as a hole; a record counts only if its checksum does, which covers the
teacher, the text and the record. What a kill, a full disk or two writers at once leave half written is
therefore a record that is not there, and is made again.

Log-probabilities are float16 rather than bfloat16: in as many bytes they are eight times as exact, and the
likely tokens, which matter most, lie near zero, where they are finest.

Legend: B batch, T tokens of a sequence, K most likely tokens.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import IntegrityError, ResourceError
from ..method.losses.base import Targets
from ..storage.files import make_folder, naming, write_json
from .tokens import read_index

if TYPE_CHECKING:
    import torch

FORMAT = 1
CHECK = "check"
Record = NDArray[Any]
Facts = Mapping[str, Any]
MEANING = {
    "base": "of another base",
    "dtype": "of the base in another dtype (base.dtype)",
    "precision": "of the base in another precision (train.precision)",
    "tokenizer": "of another tokenizer",
    "text": "of other text",
    "sequence_length": "of sequences of another length (sequence_length)",
    "begin": "of sequences that begin otherwise (begin_sequences)",
    "apart": "of documents that see each other otherwise (attend_across_documents)",
}
"""What it means that one of the facts differs, in the order in which they are told."""


def record_type(length: int, top: int, vocabulary: int) -> np.dtype[Any]:
    """The fields of a record.

    Args:
        length: tokens of a sequence. top: K. vocabulary: how many tokens there are.
    """
    index = "<u2" if vocabulary <= 1 << 16 else "<u4"
    fields = [(CHECK, "<u4"), ("rest", "<f4", (length,))]
    return np.dtype([*fields, ("log_p", "<f2", (length, top)), ("index", index, (length, top))])


class TargetFile:
    """The records of one stream.

    Args:
        folder: the cache.
        name: of the stream.
        count: sequences of the stream.
        facts: what the records depend on; see `MEANING`.
        top: tokens that the loss compares individually; a file that has more of them serves as well.
        vocabulary: tokens of the model.

    Raises:
        IntegrityError: there is a file already, and it was made from something else.
        ResourceError: there is no room for the records that are still to come.
    """

    def __init__(
        self, folder: Path, name: str, count: int, facts: Facts, *, top: int, vocabulary: int
    ) -> None:
        self.path = folder / f"{name}.targets"
        self.top = min(top, vocabulary - 1)
        self.facts = {"format": FORMAT, **facts, "vocabulary": vocabulary}
        index = folder / f"{name}.json"
        if index.is_file():
            self.top = self._known(read_index(index))
        self.type = record_type(facts["sequence_length"], self.top, vocabulary)
        self.count, self._seed = count, zlib.crc32(json.dumps(self.facts, sort_keys=True).encode())
        make_folder(folder)
        with naming(self.path):
            self.path.touch()
            if self.path.stat().st_size != self.bytes:
                os.truncate(self.path, self.bytes)
        if not index.is_file():
            write_json(index, {**self.facts, "top_k": self.top, "sequences": count})
        self._records: Record = np.memmap(self.path, dtype=self.type, mode="r", shape=(count,))

    @property
    def bytes(self) -> int:
        """Size of all records."""
        return self.count * self.type.itemsize

    @property
    def filled(self) -> int:
        """How many records have been begun."""
        return int(np.count_nonzero(self._records[CHECK]))

    def require_room(self, most: int) -> None:
        """Refuse a disk that cannot hold the records that a run will make.

        Args:
            most: sequences that the run reads at most.

        Raises:
            ResourceError: with the bytes and the remedy.
        """
        free = shutil.disk_usage(self.path.parent).free
        needed = min(most, self.count - self.filled) * self.type.itemsize
        if free < needed:
            raise ResourceError(
                f"{self.path}: {free:,} bytes free, the teacher cache needs {needed:,} more; free some, name "
                "a folder elsewhere in distill.cache_dir, lower distill.top_k, or set distill.cache: false."
            )

    def read(self, number: int, ids: NDArray[Any]) -> Record | None:
        """The record of a sequence; None if it is not there, or not whole.

        Args:
            number: of the sequence in the stream.
            ids: its tokens [T], in which the record must have been made.
        """
        record: Record = np.array(self._records[number])
        return record if record[CHECK] == self._check(record, ids) else None

    def write(self, number: int, ids: NDArray[Any], targets: Targets) -> Record:
        """Keep what the teacher says of a sequence; returns the record.

        Args:
            number, ids: as in `read`.
            targets: tensors [T, K] and [T].
        """
        record: Record = np.zeros((), dtype=self.type)
        record["rest"] = targets.rest.numpy(force=True)
        record["log_p"] = targets.probability.log().half().numpy(force=True)
        record["index"] = targets.index.numpy(force=True)
        record[CHECK] = self._check(record, ids)
        data = record.tobytes()
        with naming(self.path), open(self.path, "r+b", buffering=0) as file:
            file.seek(number * len(data))
            if file.write(data) != len(data):
                raise ResourceError(f"{self.path}: no room for more; free some space, and --resume.")
        return record

    def _check(self, record: Record, ids: NDArray[Any]) -> int:
        seed = zlib.crc32(np.ascontiguousarray(ids, dtype="<i4").tobytes(), self._seed)
        return zlib.crc32(record.tobytes()[self.type.fields[CHECK][0].itemsize :], seed)  # type: ignore[index]

    def _known(self, index: dict[str, Any]) -> int:
        """K of the file that is there, if it can be used."""
        remedy = f"delete {self.path.parent}, or name another folder in distill.cache_dir"
        for name, meaning in MEANING.items():
            if index.get(name) != self.facts.get(name):
                raise IntegrityError(
                    f"{self.path}: a teacher cache {meaning}: {_short(index.get(name))}, and not "
                    f"{_short(self.facts.get(name))}; {remedy}."
                )
        top = index.get("top_k")
        if {name: index.get(name) for name in self.facts} != self.facts or not isinstance(top, int):
            raise IntegrityError(f"{self.path}: a teacher cache of another version, or damaged; {remedy}.")
        if top < self.top:
            raise IntegrityError(
                f"{self.path}: a teacher cache of {top} tokens a position, and distill.top_k wants "
                f"{self.top}; lower distill.top_k, {remedy}."
            )
        return top


def decoded(records: list[Record], device: torch.device) -> Targets:
    """What the teacher says of a batch: tensors [B, T, K] and [B, T], whose probabilities add up to one.

    Args:
        records: of the sequences.
        device: where the tensors are wanted.
    """
    import torch

    def stacked(field: str, kind: str) -> torch.Tensor:
        values = np.stack([record[field] for record in records]).astype(kind, copy=False)
        return torch.from_numpy(values).to(device)

    likely, rest = stacked("log_p", "f2").float().exp_(), stacked("rest", "f4")
    whole = likely.sum(-1) + rest
    return Targets(stacked("index", "i4").long(), likely / whole.unsqueeze(-1), rest / whole)


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) > 40 else text
