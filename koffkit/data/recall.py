"""Recall of facts: is the prompt completed exactly, by greedy decoding?

Greedy decoding yields the answer exactly if, with the answer as input, every answer token is the most likely
one: one forward pass instead of a decoding loop (a test compares the two).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..checkpoint.vocabulary import require_known
from ..errors import DataError
from ..recipe.schema import Source
from .records import records, text_field

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")


@dataclass(frozen=True)
class Fact:
    """Token ids of prompt and answer; `answer_start` is the answer's first position."""

    ids: tuple[int, ...]
    answer_start: int


def load_facts(
    source: Source,
    root: Path,
    where: str,
    tokenizer: Any,
    limit: int | None = None,
    *,
    vocab_size: int | None = None,
) -> list[Fact]:
    """Load the facts of a source with `prompt_field` and `answer_field`; with `limit`, an evenly spread
    subset.

    Args:
        source: a source of the recipe.
        root: the folder that relative paths start from, before the working folder.
        where: the recipe field of the source, for errors.
        tokenizer: the base's.
        limit: the most facts; None: all.
        vocab_size: rows of the model's embedding, which no token may exceed.

    Raises:
        DataError: a record lacks a field, no answer begins at a token boundary, or the model does not know a
            token.
    """
    fields = (source.prompt_field or "", source.answer_field or "")
    pairs: list[tuple[str, str, str]] = []
    for number, (spot, record) in enumerate(records(source, root, where), 1):
        missing = [name for name in fields if name not in record]
        if missing:
            raise DataError(
                f"{where}: record {number} has no field {missing[0]!r}; found: {', '.join(record)} ({spot})."
            )
        pairs.append((text_field(record, fields[0], spot), text_field(record, fields[1], spot), spot))
    pairs = subsample(pairs, limit)
    prompts = tokenizer([prompt for prompt, _, _ in pairs])["input_ids"]
    whole = tokenizer([prompt + answer for prompt, answer, _ in pairs])["input_ids"]
    for ids, (_, _, spot) in zip(whole, pairs, strict=True):
        require_known(ids, vocab_size, tokenizer, spot)
    facts = [
        Fact(tuple(ids), len(prompt))
        for prompt, ids in zip(prompts, whole, strict=True)
        if ids[: len(prompt)] == prompt
    ]
    if not facts:
        raise DataError(
            f"{where}: no prompt is followed by its answer at a token's boundary, so recall cannot be "
            f"measured; end {fields[0]} with a whole word and let {fields[1]} begin with the space."
        )
    return facts


def subsample(items: list[Item], limit: int | None) -> list[Item]:
    """At most `limit` of the items, evenly spread."""
    if limit is None or len(items) <= limit:
        return items
    return [items[index * len(items) // limit] for index in range(limit)]


def recall(predict: Callable[[Tensor], Tensor], facts: list[Fact], batch_size: int = 128) -> list[bool]:
    """Whether each fact is completed exactly.

    Args:
        predict: ids [B, T], padded on the right -> most likely next token at every position [B, T].
            Padding on the right needs no mask: a causal model does not look ahead.
    """
    import torch

    completed: dict[int, bool] = {}
    order = sorted(range(len(facts)), key=lambda index: len(facts[index].ids))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        width = len(facts[part[-1]].ids)
        ids = torch.zeros(len(part), width, dtype=torch.long)
        answer_mask = torch.zeros(len(part), width - 1, dtype=torch.bool)
        for row, index in enumerate(part):
            fact = facts[index]
            ids[row, : len(fact.ids)] = torch.tensor(fact.ids)
            answer_mask[row, fact.answer_start - 1 : len(fact.ids) - 1] = True
        guesses = predict(ids)[:, :-1].cpu()
        right = ((guesses == ids[:, 1:]) | ~answer_mask).all(dim=1)
        completed.update(zip(part, right.tolist(), strict=True))
    return [completed[index] for index in range(len(facts))]
