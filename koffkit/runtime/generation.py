"""Prompts to token ids and back, for `KoffModel.generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..errors import UsageError


def encode_prompts(tokenizer: Any, prompts: Sequence[str], vocab_size: int) -> tuple[Any, int | None]:
    """Tokenize prompts into one batch, padded on the left.

    Args:
        tokenizer: the backbone's; without a padding token, it gets its end-of-text token as one.
        prompts: at least one.
        vocab_size: rows of the model's embedding.

    Returns:
        The tokenizer's batch object with `input_ids` and `attention_mask`, [B, T] each, and the token to pad
        with.

    Raises:
        UsageError: a prompt has a token that the model has no embedding for.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(
        prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False
    )
    return batch, _replace_unknown_padding(tokenizer, batch, vocab_size)


def _replace_unknown_padding(tokenizer: Any, batch: Any, vocab_size: int) -> int | None:
    """The token to pad with. A padding token that was added to the tokenizer only has no embedding; since
    padding is masked, any other token will do."""
    padding: int | None = tokenizer.pad_token_id
    if padding is not None and padding >= vocab_size:
        end = tokenizer.eos_token_id
        padding = end if end is not None and end < vocab_size else 0
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, padding)
    largest = int(batch["input_ids"].max()) if batch["input_ids"].numel() else 0
    if largest >= vocab_size:
        name = tokenizer.convert_ids_to_tokens(largest)
        raise UsageError(
            f"--prompt: token {largest} ({name!r}) is beyond the model's embedding (vocab_size "
            f"{vocab_size}); take it out of the prompt."
        )
    return padding


def decode_completions(tokenizer: Any, ids: Tensor, prompt_length: int) -> list[str]:
    """The texts of generated ids [B, T] after the first `prompt_length` tokens of each row."""
    texts: list[str] = tokenizer.batch_decode(ids[:, prompt_length:], skip_special_tokens=True)
    return texts


def positions_of(attention_mask: Tensor) -> Tensor:
    """Positions [B, T] for an attention mask [B, T].

    Memory keys are not rotated, so the text must start at position 0, whatever padding comes before it.
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
