"""A conversation with a `KoffModel`, whose memory may change from turn to turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import TextStreamer

from .model import KoffModel
from .prompts import Turn

AUTO = "auto"


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Args:
        text: its words.
        memory: the memory it had; None: the bare backbone.
        stopped: the user stopped it.
    """

    text: str
    memory: str | None
    stopped: bool = False


class Conversation:
    """Turns of a user and a model.

    With a chat template the model reads the turns through it; without one it continues the text so far.

    Args:
        model: the model.
        memory: `auto`, the name of a memory, or None.
        system: what a conversation begins with; None: nothing.
        options: of `KoffModel.generate`.
    """

    def __init__(
        self, model: KoffModel, memory: str | None, system: str | None, options: Mapping[str, Any]
    ) -> None:
        self.model, self.options = model, dict(options)
        self._beginning: list[Turn] = [] if system is None else [{"role": "system", "content": system}]
        self.turns: list[Turn] = list(self._beginning)
        self.memory = self.use(memory)

    def use(self, memory: str | None) -> str | None:
        """Answer with this memory from now on.

        Raises:
            UsageError: it is not loaded, or "auto" without a router.
        """
        if memory == AUTO:
            self.model.route(["a"])
        elif memory is not None:
            self.model.rows(memory, 1)
        self.memory = memory
        return memory

    def forget(self) -> None:
        """Begin anew."""
        self.turns = list(self._beginning)

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer knows how turns are written."""
        return bool(getattr(self.model.tokenizer, "chat_template", None))

    def choose(self, said: str) -> tuple[str | None, float | None]:
        """The memory for what the user says, and the router's probability where it was asked."""
        if self.memory == AUTO:
            return self.model.route([said])[0]
        return self.memory, None

    def say(self, said: str, memory: str | None, write: Callable[[str], None]) -> Answer:
        """Answer the user. A Ctrl-C while the answer is written ends the answer alone.

        Args:
            said: what the user says.
            memory: the memory to answer with.
            write: gets the answer piece by piece.

        Raises:
            UsageError: the conversation is longer than the model reads; it is as before, then.
        """
        turns = [*self.turns, {"role": "user", "content": said}]
        prompt: Any = turns if self.has_template else "\n".join(str(turn["content"]) for turn in turns)
        heard = _Pieces(self.model.tokenizer, write)
        stopped = False
        try:
            self.model.generate(prompt, memory=[memory], streamer=heard, **self.options)
        except KeyboardInterrupt:
            stopped = True
        answer = Answer("".join(heard.pieces).strip(), memory, stopped)
        self.turns = [*turns, {"role": "assistant", "content": answer.text}]
        return answer


class _Pieces(TextStreamer):  # type: ignore[misc]
    """Keeps what it hands on."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.pieces: list[str] = []
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append(text)
        self._write(text)
