"""The export of format `gguf` that llama-server runs, and a model without weights that stands for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel, ValidationError

from ..artefact.export import is_export, open_export
from ..artefact.names import SERVING
from ..errors import IntegrityError
from ..storage.read_json import read_json

FORMAT = "gguf"


class LlamaState(BaseModel):
    """The KV half of a memory.

    Attributes:
        sentinel: the token that stands for it at the start of a prompt. tokens: how many times.
        file: the state of a slot that has read them, without flash attention.
    """

    sentinel: int
    tokens: int
    file: str


class LlamaMemory(BaseModel):
    """A memory; a half that is None is off.

    Attributes:
        lora: the file of its adapter.
    """

    lora: str | None = None
    kv: LlamaState | None = None


class LlamaServing(BaseModel):
    """The export that llama-server runs.

    Attributes:
        context: positions of the model.
        memories: by name, in the order in which llama-server numbers the adapters.
    """

    context: int
    memories: dict[str, LlamaMemory]


def llama_serving(folder: Path) -> LlamaServing | None:
    """What the `serving.json` of an export of format `gguf` says; None: the folder is none.

    Raises:
        IntegrityError: it is damaged.
    """
    if not is_export(folder) or open_export(folder, any_format=True).manifest.format != FORMAT:
        return None
    path = folder / SERVING
    try:
        return LlamaServing.model_validate(read_json(path, remedy="export again"))
    except ValidationError:
        raise IntegrityError(f"{path}: not as koffkit writes it; export again.") from None


class LlamaModel:
    """What `Service` asks of a `KoffModel`; llama-server has the weights.

    Args:
        names: of the memories.
        tokenizer: of the backbone.
        router: picks a memory; None: there is none.
        vocab_size, context: tokens and positions of the model.
    """

    def __init__(
        self, names: Sequence[str], tokenizer: Any, router: Any, *, vocab_size: int, context: int
    ) -> None:
        self.domains, self.tokenizer, self._router = list(names), tokenizer, router
        config = SimpleNamespace(vocab_size=vocab_size, max_position_embeddings=context)
        self.model = SimpleNamespace(config=config)

    @property
    def has_router(self) -> bool:
        """Whether there is a router."""
        return self._router is not None

    def route(self, prompts: Sequence[str]) -> list[tuple[str | None, float]]:
        """For each prompt the most likely memory, None if it fits none, and its probability."""
        found: list[tuple[str | None, float]] = self._router.route(prompts, allowed=self.domains)
        return found
