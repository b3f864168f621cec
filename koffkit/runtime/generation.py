"""Prompts to token ids and back, for `KoffModel.generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError


def encode_prompts(
    tokenizer: Any,
    prompts: Sequence[str],
    config: Any,
    *,
    chat: bool = False,
    device: torch.device | None = None,
) -> tuple[dict[str, Tensor], int]:
    """Tokenize prompts into one batch, padded on the left. No padding token is needed: what stands in padding
    is masked, so any token will do.

    Args:
        tokenizer: the backbone's.
        prompts: at least one.
        config: of the model: how many tokens it knows, and how many it reads.
        chat: the prompts go through the chat template, which has the tokens that a text begins with.
        device: where the batch goes; None: the CPU.

    Returns:
        `input_ids` and `attention_mask`, [B, T] each, and the token to pad with.

    Raises:
        UsageError: a prompt has a token that the model has no embedding for, or more tokens than the model
            reads, or none and the tokenizer has no token to begin a text with; or there is no chat template.
    """
    encoded = tokenizer(
        chat_prompts(tokenizer, prompts) if chat else list(prompts),
        add_special_tokens=not chat,
        return_token_type_ids=False,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    rows = [ids or _beginning(tokenizer, number) for number, ids in enumerate(encoded, 1)]
    for number, ids in enumerate(rows, 1):
        _require_readable(tokenizer, ids, config, number)
    padding = _padding(tokenizer, config)
    longest = max(map(len, rows))
    padded = [[padding] * (longest - len(ids)) + list(ids) for ids in rows]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows]
    batch = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
    return {name: values.to(device) for name, values in batch.items()}, padding


def chat_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Prompts as the first turn of a conversation, in the words of the tokenizer's chat template, up to where
    the assistant begins.

    Raises:
        UsageError: there is no chat template, or it refuses.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("--chat: the tokenizer has no chat template; leave it out, or choose a chat model.")
    try:
        return [
            str(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
                )
            )
            for prompt in prompts
        ]
    except Exception as error:  # a template is a program of somebody else's
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(f"--chat: the chat template refuses ({reason}); leave it out.") from None


def _beginning(tokenizer: Any, number: int) -> list[int]:
    if tokenizer.bos_token_id is None:
        raise UsageError(
            f"--prompt: prompt {number} is empty, and the tokenizer has no token to begin a text with; give "
            "some text."
        )
    return [int(tokenizer.bos_token_id)]


def _require_readable(tokenizer: Any, ids: Sequence[int], config: Any, number: int) -> None:
    largest, vocab_size = max(ids), int(config.vocab_size)
    if largest >= vocab_size:
        name = tokenizer.convert_ids_to_tokens(largest)
        raise UsageError(
            f"--prompt: token {largest} ({name!r}) is beyond the model's embedding (vocab_size "
            f"{vocab_size}); take it out of the prompt."
        )
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and len(ids) >= limit:
        raise UsageError(
            f"--prompt: prompt {number} has {len(ids):,} tokens, and the model reads {limit:,} "
            "(max_position_embeddings), at least one of which is for the answer; shorten it."
        )


def _padding(tokenizer: Any, config: Any) -> int:
    """The token to pad with: one that the model has an embedding for, which a padding token that was added to
    the tokenizer only has not."""
    ends = getattr(config, "eos_token_id", None)
    candidates = [
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        *(ends if isinstance(ends, list) else [ends]),
    ]
    known = [int(token) for token in candidates if token is not None and token < int(config.vocab_size)]
    return known[0] if known else 0


def decode_completions(tokenizer: Any, ids: Tensor, prompt_length: int) -> list[str]:
    """The texts of generated ids [B, T] after the first `prompt_length` tokens of each row."""
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
