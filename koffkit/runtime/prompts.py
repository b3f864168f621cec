"""What `KoffModel.generate` is asked to complete: texts, conversations or token ids, read into one batch.

Legend: B prompts, T tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError

Turn = Mapping[str, Any]
"""`{"role": ..., "content": ...}`, and what else the chat template reads."""
Prompt = str | Sequence[Turn]
"""A text, or a conversation."""
Prompts = Prompt | Sequence[Prompt]


@dataclass(frozen=True)
class ReadPrompts:
    """Prompts as a batch.

    Args:
        prompts: texts and conversations; empty where token ids were given.
        ids, mask: [B, T], padded on the left; empty where there is no prompt.
        padding: the token to pad with.
    """

    prompts: Sequence[Prompt]
    ids: Tensor
    mask: Tensor
    padding: int

    @property
    def count(self) -> int:
        """B."""
        return len(self.ids)

    @property
    def width(self) -> int:
        """T."""
        return int(self.ids.shape[1])

    def batch(self, device: torch.device) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` on a device."""
        return {"input_ids": self.ids.to(device), "attention_mask": self.mask.to(device)}

    def texts(self, tokenizer: Any) -> list[str]:
        """What a router reads of each prompt: of a conversation what the user said last."""
        if not self.prompts:
            kept = [ids[there.bool()] for ids, there in zip(self.ids, self.mask, strict=True)]
            return [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in kept]
        return [prompt if isinstance(prompt, str) else last_words(prompt) for prompt in self.prompts]


def last_words(turns: Sequence[Turn]) -> str:
    """What the user said last in a conversation; parts of a message that are no text are left out."""
    said = [turn.get("content") for turn in turns if turn.get("role") == "user"] or [""]
    content = said[-1]
    if isinstance(content, str) or content is None:
        return content or ""
    return "\n".join(str(part.get("text", "")) for part in content)


def read_prompts(
    tokenizer: Any,
    config: Any,
    prompts: Prompts | None,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    *,
    chat: bool,
) -> ReadPrompts:
    """Read what is to be completed; see `KoffModel.generate`.

    Raises:
        UsageError: both or neither of prompts and ids are given, or the model cannot read a prompt.
    """
    if (prompts is None) == (input_ids is None):
        raise UsageError("generate: give either prompts or input_ids.")
    if input_ids is not None:
        return _read_ids(tokenizer, config, input_ids, attention_mask)
    assert prompts is not None
    single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Mapping))
    several: list[Any] = [prompts] if single else list(prompts)
    if not several:
        nothing = torch.empty(0, 0, dtype=torch.long)
        return ReadPrompts([], nothing, nothing, 0)
    batch, padding = encode_prompts(tokenizer, several, config, chat=chat)
    return ReadPrompts(several, batch["input_ids"], batch["attention_mask"], padding)


def _read_ids(tokenizer: Any, config: Any, ids: Tensor, mask: Tensor | None) -> ReadPrompts:
    if ids.dim() != 2 or not ids.numel():
        raise UsageError(f"input_ids: shape {list(ids.shape)}; it must be [prompts, tokens].")
    if mask is not None and mask.shape != ids.shape:
        raise UsageError(
            f"attention_mask: shape {list(mask.shape)}; it must be that of input_ids, {list(ids.shape)}."
        )
    mask = torch.ones_like(ids) if mask is None else mask.to(ids.device)
    for number, (row, there) in enumerate(zip(ids, mask, strict=True), 1):
        _require_readable(tokenizer, row[there.bool()].tolist(), config, number)
    return ReadPrompts([], ids, mask, _padding(tokenizer, config))


def encode_prompts(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    config: Any,
    *,
    chat: bool = False,
    device: torch.device | None = None,
) -> tuple[dict[str, Tensor], int]:
    """Tokenize prompts into one batch, padded on the left. No padding token is needed: what stands in padding
    is masked, so any token will do.

    Args:
        tokenizer: the backbone's.
        prompts: at least one; if one is a conversation, all are, a text its first turn.
        config: of the model: how many tokens it knows, and how many it reads.
        chat: the prompts go through the chat template, which has the tokens that a text begins with.
        device: where the batch goes; None: the CPU.

    Returns:
        `input_ids` and `attention_mask`, [B, T] each, and the token to pad with.

    Raises:
        UsageError: a prompt has a token that the model has no embedding for, or more tokens than the model
            reads, or none and the tokenizer has no token to begin a text with; or there is no chat template.
    """
    talks = chat or any(not isinstance(prompt, str) for prompt in prompts)
    encoded = tokenizer(
        chat_prompts(tokenizer, prompts) if talks else list(prompts),
        add_special_tokens=not talks,
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


def chat_prompts(tokenizer: Any, prompts: Sequence[Prompt]) -> list[str]:
    """Conversations in the words of the tokenizer's chat template, up to where the assistant begins.

    Args:
        tokenizer: the backbone's.
        prompts: conversations, or texts, each the first turn of one.

    Raises:
        UsageError: there is no chat template, or it refuses.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("--chat: the tokenizer has no chat template; leave it out, or choose a chat model.")
    try:
        return [
            str(tokenizer.apply_chat_template(_turns(prompt), tokenize=False, add_generation_prompt=True))
            for prompt in prompts
        ]
    except Exception as error:  # a template is a program of somebody else's
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(f"--chat: the chat template refuses ({reason}); leave it out.") from None


def _turns(prompt: Prompt) -> list[Turn]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


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
