"""Conversations as token ids, through the tokenizer's own chat template (transformers renders it in a
sandbox)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError
from .records import parse, require_whole_characters

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages with plain text as content, and the tools they may call.

    Args:
        spot: its file and line, for errors.
    """

    messages: Sequence[Message]
    spot: str
    tools: Sequence[Mapping[str, Any]] | None = None

    @property
    def user_text(self) -> str:
        """The text that a router sees: what the user said."""
        return "\n".join(str(message["content"]) for message in self.messages if message["role"] == "user")


def check_conversation(value: Any, tools: Any, spot: str) -> Conversation:
    """Check a record's conversation.

    Args:
        value: a list of `{"role": ..., "content": ...}`. Content is text, a list of text parts, which are
            joined, or, in a message that calls tools, absent.
        tools: the tools that it may call, as a list of objects or as JSON text; None: none.
        spot: its file and line, for errors.

    Raises:
        DataError: it is something else.
    """
    good = isinstance(value, list) and value and all(isinstance(m, Mapping) and "role" in m for m in value)
    if not good:
        raise DataError(f"{spot}: not a conversation; it must be a list of objects with role and content.")
    messages = [_plain(message, f"{spot}: message {number}") for number, message in enumerate(value, 1)]
    try:
        written = json.dumps([messages, tools], ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise DataError(
            f"{spot}: a conversation holds values that JSON cannot hold, or is nested too deeply."
        ) from None
    require_whole_characters(written, spot, "messages")
    return Conversation(messages, spot, _checked_tools(tools, spot))


def _plain(message: Message, spot: str) -> Message:
    if not isinstance(message["role"], str) or not message["role"]:
        raise DataError(
            f"{spot}: role is {str(message['role'])[:60]!r}; name who speaks: user, assistant, ..."
        )
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, spot) for part in content)
    elif content is None and (message.get("tool_calls") or message.get("function_call")):
        content = ""
    if not isinstance(content, str):
        kind = "missing" if content is None else f"a {type(content).__name__}"
        raise DataError(
            f"{spot} ({message['role'][:60]}): content is {kind}; it must be text, a list of text parts, or "
            "absent beside tool_calls."
        )
    return {**message, "content": content}


def _part(part: Any, spot: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") == "text":
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise DataError(
        f"{spot}: a part of its content is {str(kind)[:60]!r}; only parts of type text are learned."
    )


def _checked_tools(tools: Any, spot: str) -> Sequence[Mapping[str, Any]] | None:
    """The tools of a conversation; some data sets hold them as JSON text."""
    if isinstance(tools, str) and tools.strip():
        tools = parse(tools, f"{spot}: tools")
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(
            f"{spot}: tools is not a list of objects; name another field with `tools:`, or repair the record."
        )
    return list(tools)


def require_template(tokenizer: Any, where: str) -> None:
    """Refuse a tokenizer without a chat template.

    Raises:
        DataError: it has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{where}: messages need a chat template, and the base's tokenizer has none; use a chat model as "
            "base, put chat_template.jinja beside its tokenizer, or give plain text with field."
        )


def conversation_ids(
    tokenizer: Any, conversation: Conversation, *, mask: bool
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation and, with `mask`, whether the assistant said each of them.

    A turn of the assistant is what the template adds to the conversation so far when its generation prompt is
    already there: its text and what closes the turn. A token that begins in the prompt and ends in the turn
    counts as the assistant's.

    Args:
        tokenizer: the base's.
        conversation: the conversation.
        mask: whether to find the assistant's tokens; without it, all are False.

    Raises:
        DataError: the template cannot render it, or changes earlier turns when later ones are added, so that
            the assistant's tokens cannot be identified.
    """
    messages = conversation.messages
    text = render(tokenizer, conversation)
    encoded = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=mask, verbose=False
    )  # the template writes its own special tokens
    ids: list[int] = encoded["input_ids"]
    if not mask:
        return ids, [False] * len(ids)
    said = np.zeros(len(text), dtype=bool)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, conversation, index, prompt=True) if index else ""
        after = render(tokenizer, conversation, index + 1)
        if not text.startswith(after) or not after.startswith(before):
            raise DataError(
                f"{conversation.spot}: the chat template renders earlier turns differently when later ones "
                "follow, so loss_on: assistant cannot tell whose tokens are whose; use loss_on: all, or "
                "conversations of one exchange."
            )
        said[len(before) : len(after)] = True
    return ids, [bool(end > start and said[end - 1]) for start, end in encoded["offset_mapping"]]


def render(
    tokenizer: Any,
    conversation: Conversation,
    count: int | None = None,
    *,
    prompt: bool = False,
    tools: bool = True,
) -> str:
    """Render the first `count` messages with the chat template; None: all messages.

    Raises:
        DataError: the template refuses them.
    """
    from jinja2 import TemplateError

    given = {"tools": list(conversation.tools)} if tools and conversation.tools else {}
    try:
        text = tokenizer.apply_chat_template(
            list(conversation.messages[:count]), tokenize=False, add_generation_prompt=prompt, **given
        )
    except (
        TemplateError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise DataError(
            f"{conversation.spot}: the chat template refuses this conversation: {str(error)[:300]}"
        ) from None
    if not isinstance(text, str):
        raise DataError(f"{conversation.spot}: the chat template renders this conversation to no text.")
    return text
