"""Conversations as token ids, through the tokenizer's own chat template (transformers renders it in a
sandbox)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DataError

Message = Mapping[str, Any]


def check_messages(value: Any, where: str) -> list[Message]:
    """A conversation: a list of `{"role": ..., "content": ...}`.

    Raises:
        DataError: it is something else.
    """
    good = (
        isinstance(value, list)
        and value
        and all(isinstance(m, Mapping) and "role" in m and "content" in m for m in value)
    )
    if not good:
        raise DataError(f"{where}: not a conversation; it must be a list of objects with role and content.")
    return list(value)


def require_template(tokenizer: Any, where: str) -> None:
    """Raises:
    DataError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{where}: messages need a chat template, and the base's tokenizer has none; use a chat model as "
            "base, put "
            "chat_template.jinja beside its tokenizer, or give plain text with field."
        )


def conversation_ids(
    tokenizer: Any, messages: Sequence[Message], where: str, *, mask: bool
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and, if a mask is asked for, of each whether the assistant said it.

    A turn of the assistant is what the template adds to the conversation so far when its generation prompt is
    already there: its text and what closes the turn. A token that begins in the prompt and ends in the turn
    is the assistant's.

    Raises:
        DataError: the template cannot render it, or changes earlier turns when later ones are added, so that
            no mask can be told.
    """
    text = _render(tokenizer, messages, where)
    encoded = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=mask
    )  # the template writes its own special tokens
    ids: list[int] = encoded["input_ids"]
    if not mask:
        return ids, [False] * len(ids)
    said = np.zeros(len(text), dtype=bool)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:index], where, prompt=True) if index else ""
        after = _render(tokenizer, messages[: index + 1], where)
        if not text.startswith(after) or not after.startswith(before):
            raise DataError(
                f"{where}: the chat template renders earlier turns differently when later ones follow, so "
                "loss_on: assistant cannot tell "
                "whose tokens are whose; use loss_on: all, or conversations of one exchange."
            )
        said[len(before) : len(after)] = True
    return ids, [bool(end > start and said[end - 1]) for start, end in encoded["offset_mapping"]]


def _render(tokenizer: Any, messages: Sequence[Message], where: str, *, prompt: bool = False) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompt
        )
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{where}: the chat template refuses this conversation: {error}") from None
    return text


def user_text(messages: Sequence[Message]) -> str:
    """What a router sees of a conversation: what was asked."""
    return "\n".join(str(message["content"]) for message in messages if message["role"] == "user")
