"""What the student learns from: the unpruned model, or what a cache knows of it.

Legend: B batch, T tokens, D hidden.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..arch.weights import vocab_size
from ..data.corpus import RETENTION
from ..data.packing import STARTS_SUFFIX, PackedTokens
from ..data.teacher_cache import TargetFile, decoded
from ..data.tokens import read_index
from ..data.vocabulary import vocabulary_digest
from ..method.losses.base import Objective, Targets
from ..method.losses.top_k import targets_of
from ..model.batch import Batch
from ..parallel import ranks, sharding
from ..planning.estimates import asked_tokens

if TYPE_CHECKING:
    from .context import Context


class TeacherCache:
    """The files of all streams of a run, whose sequences are numbered through.

    Args:
        folder: where they are.
        files: by the number of their first sequence.
        chunk_tokens: tokens whose logits exist at once.
        in_step: processes hold parts of the teacher, so that all ask it if one must.
    """

    def __init__(
        self, folder: Path, files: Mapping[int, TargetFile], chunk_tokens: int, *, in_step: bool = False
    ) -> None:
        self.folder, self._files, self._chunk, self._in_step = folder, files, chunk_tokens, in_step

    def targets(self, batch: Batch, unpruned: Callable[[], Tensor], head: Tensor) -> Targets:
        """What the teacher says of a batch, which is computed if the cache lacks any of it. Either way it is
        what the file holds, so that it does not matter who filled it.

        Args:
            batch: sequences with numbers.
            unpruned: last hidden states of the unpruned model [B, T, D].
            head: the vocabulary projection [V, D].
        """
        assert batch.numbers is not None
        ids, numbers = batch.ids.numpy(force=True), batch.numbers.tolist()
        places = [self._place(number) for number in numbers]
        records = [file.read(number, ids[row]) for row, (file, number) in enumerate(places)]
        missing = sum(record is None for record in records)
        if any(ranks.collected(missing)) if self._in_step else missing:
            hidden = unpruned()
            for row, (file, number) in enumerate(places):
                if records[row] is None:
                    parts = torch.split(hidden[row], self._chunk)
                    found = [targets_of(F.linear(part, head), file.top) for part in parts]
                    records[row] = file.write(number, ids[row], _joined(found))
        return decoded([record for record in records if record is not None], batch.ids.device)

    def _place(self, number: int) -> tuple[TargetFile, int]:
        first = max(first for first in self._files if first <= number)
        return self._files[first], number - first


def _joined(parts: list[Targets]) -> Targets:
    whole = (
        [part.index for part in parts],
        [part.probability for part in parts],
        [part.rest for part in parts],
    )
    return Targets(*(torch.cat(tensors) for tensors in whole))


def open_cache(context: Context, base: str) -> TeacherCache | None:
    """Open the cache that the recipe wants, and let all text be cut at the same places in every epoch.

    Args:
        context: see `Context`.
        base: digest of the unpruned model.

    Returns:
        The cache; None if the recipe wants none, or the loss has no teacher.

    Raises:
        IntegrityError: there is a cache already, of another base or other text.
        ResourceError: the disk has no room for it.
    """
    recipe, corpus = context.loaded.recipe, context.corpus
    if not recipe.distill.cache:
        return None
    streams = corpus.train | ({} if corpus.retention is None else {RETENTION: corpus.retention})
    firsts: dict[str, int] = {}
    first = 0
    for name, stream in streams.items():
        firsts[name] = first
        stream.keep_cuts(first)
        first += stream.sequences_of_epoch(recipe.sequence_length)
    loss = Objective.named(recipe.distill.loss, recipe.distill).loss
    if not loss.needs_teacher or loss.num_targets is None:
        return None
    facts = {name: _facts(context, base, name, stream) for name, stream in streams.items()}
    top, vocabulary = loss.num_targets(recipe.distill), vocab_size(context.student.spec.config)
    folder = _folder(context, {**facts, "top": top})
    files = {}
    for name, stream in streams.items():
        count = stream.sequences_of_epoch(recipe.sequence_length)
        file = TargetFile(folder, name, count, facts[name], top=top, vocabulary=vocabulary)
        file.require_room(_asked(context, name))
        files[firsts[name]] = file
    there = sum(file.filled for file in files.values())
    context.progress.message(f"teacher cache: {folder} holds {there:,} of {first:,} sequences")
    in_step = sharding.is_divided(context.student.model)
    return TeacherCache(folder, files, recipe.distill.chunk_tokens, in_step=in_step)


def _folder(context: Context, facts: Mapping[str, Any]) -> Path:
    named = context.loaded.recipe.distill.cache_dir
    if named is not None:
        return context.loaded.root / Path(named).expanduser()
    if context.shared is None:
        return context.run.teacher_dir
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return context.shared / f"teacher-{digest[:16]}"


def _facts(context: Context, base: str, name: str, stream: PackedTokens) -> dict[str, Any]:
    """What the teacher's words on a stream depend on."""
    recipe = context.loaded.recipe
    files = read_index(context.run.data_dir / f"{name}.json")["files"]
    read = [stream.path.name] + (
        [stream.path.with_suffix(STARTS_SUFFIX).name] if stream.starts is not None else []
    )
    return {
        "base": base,
        "dtype": recipe.base.dtype,
        "precision": recipe.train.precision,
        "products": recipe.train.float32_matmul_precision,
        "tokenizer": vocabulary_digest(context.tokenizer),
        "text": ", ".join(files[part]["sha256"] for part in read),
        "sequence_length": recipe.sequence_length,
        "begin": stream.begin,
        "apart": stream.starts is not None,
    }


def _asked(context: Context, name: str) -> int:
    """Sequences of a stream that training reads at most."""
    recipe = context.loaded.recipe
    tokens = asked_tokens(recipe).get("retention" if name == RETENTION else name, 0)
    return math.ceil(tokens / recipe.sequence_length)
