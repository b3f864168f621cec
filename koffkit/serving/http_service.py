"""From what a client sends to what the engine is asked for: which memory, which tokens, how many."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any

from ..errors import near_name
from .engine_queue import RequestQueue
from .engine_rows import NO_MEMORY, Sampling
from .http_errors import ApiError, invalid
from .http_schema import Asked, ChatRequest, CompletionRequest

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One answer that is wanted.

    Args:
        ids: the prompt's tokens.
        memory: of the answer; None: the bare backbone.
        probability: that the router gave it; None: it was named.
        sampling: how tokens are chosen.
    """

    ids: Sequence[int]
    memory: str | None
    probability: float | None
    sampling: Sampling

    @property
    def about(self) -> dict[str, Any]:
        """What a client is told of its memory."""
        odds = None if self.probability is None else round(self.probability, 6)
        return {"memory": self.memory, "probability": odds}


class Service:
    """Everything that answers need.

    Args:
        model: a `KoffModel`, or what stands for one.
        engine: of that model.
        max_tokens: the most tokens of an answer that may be asked for; None: what the model has room for.
        seconds: how long an answer may take.
    """

    def __init__(
        self,
        model: Any,
        engine: RequestQueue,
        *,
        max_tokens: int | None = None,
        seconds: float = 300.0,
    ) -> None:
        self.model, self.engine = model, engine
        self.max_tokens, self.seconds = max_tokens, seconds
        self._tokenizer = copy.deepcopy(model.tokenizer)  # the model's own is used by other threads
        self._tokens = RLock()
        limit = getattr(model.model.config, "max_position_embeddings", None)
        self.context = limit if isinstance(limit, int) else None
        self.has_router = model.has_router

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    @property
    def names(self) -> list[str]:
        """What `model` may be."""
        return [*([AUTO] if self.has_router else []), NO_MEMORY, *self.model.domains]

    def choices(self, asked: Asked) -> list[Choice]:
        """What the engine is to be asked for. This tokenizes and routes: not for the event loop.

        Raises:
            ApiError: there is no such memory, or a prompt cannot be read.
        """
        self.require_name(asked.model)
        if isinstance(asked, ChatRequest):
            prompts = [(self._chat_ids(asked.turns), "")]
        else:
            assert isinstance(asked, CompletionRequest)
            prompts = [self._ids_and_text(prompt) for prompt in asked.prompts]
        if not prompts:
            raise invalid("prompt: empty; give at least one.", "prompt")
        count = asked.n or 1
        if len(prompts) * count > self.engine.max_batch + self.engine.max_queue:
            raise invalid(
                f"n: {len(prompts)} prompts times {count} answers are more than fit in the queue.", "n"
            )
        found = []
        for ids, text in prompts:
            memory, odds = self.choose(asked.model, asked.for_router or text)
            for number in range(count):
                sampling = self._sampling(asked, len(ids), number)
                found.append(Choice(ids=ids, memory=memory, probability=odds, sampling=sampling))
        return found

    def choose(self, name: str, text: str) -> tuple[str | None, float | None]:
        """The memory for a text, and how sure the router is.

        Args:
            name: `auto`, `none`, or a memory.
            text: what the router reads.
        """
        if name == AUTO:
            (found,) = self.model.route([text])
            return found[0], found[1]
        return (None if name == NO_MEMORY else name), None

    def require_name(self, name: str) -> None:
        """Refuse what is not one of `names`.

        Raises:
            ApiError: it is not.
        """
        if name not in self.names:
            raise ApiError(
                404, f"model: no memory {name!r}; {near_name(name, self.names)}", "model_not_found", "model"
            )

    def _ids_and_text(self, prompt: str | list[int]) -> tuple[list[int], str]:
        if isinstance(prompt, str):
            return self._readable(self._encode(prompt, special=True)), prompt
        ids = self._readable(prompt)
        with self._tokens:
            return ids, str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _chat_ids(self, turns: list[dict[str, str]]) -> list[int]:
        if not self.chats:
            raise invalid(
                "messages: the tokenizer has no chat template; send text to /v1/completions.", "messages"
            )
        try:
            with self._tokens:
                text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program of somebody else's
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise invalid(f"messages: the chat template refuses ({reason}).", "messages") from None
        return self._readable(self._encode(str(text), special=False))

    def _encode(self, text: str, *, special: bool) -> list[int]:
        with self._tokens:
            ids: list[int] = self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return ids

    def _readable(self, ids: list[int]) -> list[int]:
        """Token ids that the model can read and has room to answer."""
        if not ids:
            if self._tokenizer.bos_token_id is None:
                raise invalid("prompt: empty, and the model has no token to begin a text with.", "prompt")
            ids = [int(self._tokenizer.bos_token_id)]
        size = int(self.model.model.config.vocab_size)
        wrong = next((token for token in ids if not 0 <= token < size), None)
        if wrong is not None:
            raise invalid(f"prompt: token {wrong} is not one of the model's {size:,}.", "prompt")
        if self.context is not None and len(ids) >= self.context:
            raise invalid(
                f"prompt: {len(ids):,} tokens, and the model reads {self.context:,}, at least one of which "
                "is for the answer; shorten it.",
                "prompt",
                "context_length_exceeded",
            )
        return ids

    def _sampling(self, asked: Asked, length: int, number: int) -> Sampling:
        return Sampling(
            max_tokens=self._limit(asked, length),
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            seed=None if asked.seed is None else (asked.seed + number) % 2**63,
            stop=asked.stops,
        )

    def _limit(self, asked: Asked, length: int) -> int:
        """The most tokens of an answer to a prompt of `length` tokens."""
        assert isinstance(asked, (ChatRequest, CompletionRequest))
        wanted, given = asked.limit, asked.max_given
        room = None if self.context is None else self.context - length
        if given and wanted is not None and self.max_tokens is not None and wanted > self.max_tokens:
            raise invalid(
                f"max_tokens: {wanted:,}; this server writes {self.max_tokens:,} at most (--max-tokens).",
                "max_tokens",
            )
        if given and wanted is not None and room is not None and wanted > room:
            raise invalid(
                f"max_tokens: {wanted:,}, but after the {length:,} tokens of the prompt there is room for "
                f"{room:,}.",
                "max_tokens",
                "context_length_exceeded",
            )
        limits = [limit for limit in (wanted, room, self.max_tokens) if limit is not None]
        return min(limits) if limits else DEFAULT_TOKENS


DEFAULT_TOKENS = 512
"""Of an answer, where neither client nor server nor model set a limit."""
