"""What clients send: OpenAI's requests, as far as this server does what they say.

Fields that would change an answer and are not supported are refused unless they have the value that changes
nothing; fields that never change one are taken and ignored; unknown ones are errors.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from .http_errors import UNSUPPORTED, invalid

MAX_CHOICES = 16
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "echo": (None, False),
    "suffix": (None,),
    "best_of": (None, 1),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
}
IGNORED = frozenset(
    (
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "parallel_tool_calls",
    )
)


def _number(value: Any) -> Any:
    if isinstance(value, (bool, str)):
        raise ValueError("must be a number")
    return value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_number)]
Flag = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class StreamOptions(BaseModel):
    """What comes with a stream."""

    model_config = ConfigDict(extra="forbid")
    include_usage: Flag = False
    include_obfuscation: Flag = False


class Asked(BaseModel):
    """What both kinds of requests have."""

    model_config = ConfigDict(extra="forbid")
    model: Name = "auto"
    max_tokens: Whole | None = Field(None, ge=1)
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, gt=0, le=1)
    n: Whole | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: Whole | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = Field(None, max_length=1000)
    stream: Flag | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_done(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            raise ValueError("must be a JSON object")
        for name, allowed in NEUTRAL.items():
            if name in tree and not any(tree[name] == value for value in allowed):
                raise PydanticCustomError(
                    UNSUPPORTED, "{name} is not supported here; leave it out", {"name": name}
                )
        return {name: value for name, value in tree.items() if name not in IGNORED and name not in NEUTRAL}

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in given if stop]

    @property
    def max_given(self) -> bool:
        """Whether the client said how long an answer may be."""
        return self.max_tokens is not None or getattr(self, "max_completion_tokens", None) is not None

    @property
    def for_router(self) -> str | None:
        """What a router reads; None: each prompt."""
        return None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(Asked):
    """`POST /v1/completions`."""

    kind: ClassVar[str] = "completion"
    prompt: str | list[str] | list[int] | list[list[int]]

    @property
    def limit(self) -> int | None:
        """The most tokens of an answer; OpenAI's default."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several prompts, each a text or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[int(token) for token in self.prompt]]
        return list(self.prompt)  # type: ignore[arg-type]


class Part(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn of a conversation; what a client keeps of an answer beside its text is ignored."""

    role: Name
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        """What is said."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(Asked):
    """`POST /v1/chat/completions`."""

    kind: ClassVar[str] = "chat"
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Whole | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        return self

    @property
    def limit(self) -> int | None:
        """The most tokens of an answer; None: as many as there is room for."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def turns(self) -> list[dict[str, str]]:
        """The conversation as a chat template reads it."""
        return [{"role": message.role, "content": message.text} for message in self.messages]

    @property
    def for_router(self) -> str:
        """What the user said last."""
        said = [message.text for message in self.messages if message.role == "user"]
        return said[-1] if said else self.messages[-1].text


def last_words(messages: Any) -> str:
    """What the user said last in a conversation that nobody checked.

    Args:
        messages: field of a request.
    """
    try:
        return ChatRequest.model_validate({"messages": messages}).for_router
    except ValidationError:
        raise invalid("messages: the router reads text, and this has none.", "messages") from None


class MemoryRequest(BaseModel):
    """`POST /v1/memories`."""

    model_config = ConfigDict(extra="forbid")
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    replace: Flag = False
