"""Rows of a batch: their memories, positions and texts, for `KoffModel`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..errors import UsageError

NEW_TOKENS = 64
"""How many `generate` adds to a prompt at most, unless it is told otherwise."""


def decode_completions(tokenizer: Any, ids: Tensor, prompt_length: int) -> list[str]:
    """The texts of generated ids [B, T] after the first `prompt_length` tokens of each row.

    Args:
        tokenizer: the backbone's.
        ids: [B, T], prompts included.
        prompt_length: tokens of the longest prompt, to which the others are padded on the left.
    """
    texts: list[str] = tokenizer.batch_decode(ids[:, prompt_length:], skip_special_tokens=True)
    return texts


def one_for_each(memory: str | Sequence[str | None] | None, count: int) -> list[str | None]:
    """The name of the memory of each of `count` prompts, from one for all of them or a list.

    Raises:
        UsageError: there are more or fewer names than prompts, or the name is "auto".
    """
    if memory == "auto":
        raise UsageError('memory "auto": the router needs the prompts; call `route`, or `generate`.')
    if memory is None or isinstance(memory, str):
        return [memory] * count
    if len(memory) != count:
        raise UsageError(
            f"memory: {len(memory)} names for {count} prompts; give one name for each, or a single one."
        )
    return list(memory)


def positions_of(attention_mask: Tensor | None, input_ids: Tensor) -> Tensor | None:
    """Positions [B, T] of token ids [B, T] with an attention mask; None without one.

    Memory keys are not rotated, so the text must start at position 0, whatever padding comes before it.

    Args:
        attention_mask: [B, T], 0 = padding; None: there is none.
        input_ids: [B, T].

    Raises:
        UsageError: the mask has another shape than the ids.
    """
    if attention_mask is None:
        return None
    if attention_mask.shape != input_ids.shape:
        raise UsageError(
            f"attention_mask: shape {list(attention_mask.shape)}; it must be that of input_ids, "
            f"{list(input_ids.shape)}."
        )
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
