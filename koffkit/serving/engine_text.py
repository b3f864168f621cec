"""Tokens to text while they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class TextStream:
    """The text of one answer.

    Args:
        tokenizer: of the backbone; special tokens are left out.
        stops: texts that end the answer; they are not part of it.

    Attributes:
        stopped: whether a stop string has come.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._core: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._stream: Any = None if self._core is None else DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._decoded, self._held = "", ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take one token; returns what can be shown now."""
        self._ids.append(token)
        if self._stream is None:  # a tokenizer that is not of the library `tokenizers`
            whole = self._whole()
            piece = "" if whole.endswith("\ufffd") else whole[len(self._decoded) :]
        else:
            piece = self._stream.step(self._core, token) or ""
        self._decoded += piece
        return self._release(piece)

    def finish(self) -> str:
        """What was held back, once no token comes any more."""
        if self.stopped:
            return ""
        whole = self._whole()
        rest = whole[len(self._decoded) :] if whole.startswith(self._decoded) else ""
        self._decoded += rest
        return self._release(rest, last=True)

    def _whole(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True))

    def _release(self, piece: str, *, last: bool = False) -> str:
        text, self._held = self._held + piece, ""
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
