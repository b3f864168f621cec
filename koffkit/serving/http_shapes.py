"""Answers as OpenAI's clients know them; what is ours stands under `koffkit` in every choice."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .engine_rows import Piece
from .http_service import Choice

DONE = "data: [DONE]\n\n"


@dataclass
class Answer:
    """An answer as far as it is there.

    Args:
        choice: what was wanted.
    """

    choice: Choice
    text: str = ""
    num_tokens: int = 0
    finish: str | None = None

    def take(self, piece: Piece) -> None:
        """One more piece."""
        self.text += piece.text
        self.num_tokens, self.finish = piece.num_tokens, piece.finish


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How the answers to one request look.

    Args:
        chat: for `/v1/chat/completions`.
        model: what the client called it.
    """

    chat: bool
    model: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The object of an answer that is not streamed."""
        choices = [
            {
                "index": index,
                **self._said(answer.text),
                "finish_reason": answer.finish,
                "logprobs": None,
                "koffkit": answer.choice.about,
            }
            for index, answer in enumerate(answers)
        ]
        kind = "chat.completion" if self.chat else "text_completion"
        return self._head(kind) | {"choices": choices, "usage": usage(answers)}

    def begin(self, index: int, choice: Choice) -> Iterator[str]:
        """The first event of an answer: who speaks, and with which memory."""
        said = {"delta": {"role": "assistant", "content": ""}} if self.chat else {"text": ""}
        yield self._event({"index": index, **said, "finish_reason": None, "koffkit": choice.about})

    def part(self, index: int, piece: Piece) -> Iterator[str]:
        """The events of a piece."""
        if piece.text:
            said = {"delta": {"content": piece.text}} if self.chat else {"text": piece.text}
            yield self._event({"index": index, **said, "finish_reason": None})
        if piece.finish is not None:
            nothing: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
            yield self._event({"index": index, **nothing, "finish_reason": piece.finish})

    def usage_event(self, answers: Sequence[Answer]) -> str:
        """The event of `stream_options.include_usage`."""
        return sse(self._head(self._chunk) | {"choices": [], "usage": usage(answers)})

    def _said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}

    @property
    def _chunk(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _event(self, choice: dict[str, Any]) -> str:
        return sse(self._head(self._chunk) | {"choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}


def usage(answers: Sequence[Answer]) -> dict[str, int]:
    """Tokens read and written; a prompt that has several answers counts once."""
    prompts = {id(answer.choice.ids): len(answer.choice.ids) for answer in answers}
    read, written = sum(prompts.values()), sum(answer.num_tokens for answer in answers)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def sse(tree: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(tree, ensure_ascii=False, separators=(',', ':'))}\n\n"
