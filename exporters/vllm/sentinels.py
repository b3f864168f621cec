"""One token for every memory that has a KV half: repeated at the start of a prompt, it stands for the
memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...checkpoint.files import load_tokenizer


def choose_sentinels(backbone: Path, names: Sequence[str], vocab_size: int) -> dict[str, int]:
    """A token id for every name, each another one: special tokens that begin no text if there are enough,
    since a chat template can write them, then ordinary tokens from the end of the vocabulary.

    Args:
        backbone: the folder with the tokenizer.
        names: of memories.
        vocab_size: of the model.
    """
    return dict(zip(names, _candidates(load_tokenizer(backbone), vocab_size), strict=False))


def _candidates(tokenizer: Any, vocab_size: int) -> Iterator[int]:
    template = str(getattr(tokenizer, "chat_template", None) or "")
    taken = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    special = {
        index
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special and index < vocab_size and index not in taken and token.content not in template
    }
    yield from sorted(special, reverse=True)
    reserved = taken | set(tokenizer.added_tokens_decoder)
    yield from (index for index in reversed(range(vocab_size)) if index not in reserved)


def chat_template(backbone: Path, tokens: Mapping[str, tuple[int, int]]) -> str | None:
    """The tokenizer's chat template with the memory in front; None: the tokenizer has none, or a sentinel is
    not a token that a template can write.

    Args:
        backbone: the folder with the tokenizer.
        tokens: of every memory the sentinel and how many there are.
    """
    tokenizer = load_tokenizer(backbone)
    template = getattr(tokenizer, "chat_template", None)
    if not isinstance(template, str) or not tokens:
        return None
    parts = []
    for name, (sentinel, count) in tokens.items():
        text = tokenizer.convert_ids_to_tokens(sentinel)
        if tokenizer(text * 2, add_special_tokens=False).input_ids != [sentinel] * 2:
            return None
        parts.append(f"'{name}': '{text}' * {count}")
    return f"{{{{- {{{', '.join(parts)}}}[memory] if memory is defined and memory else '' -}}}}{template}"
