"""`serving.json`: which file is what, for whoever starts llama-server or sends it requests."""

from __future__ import annotations

from ...artefact.names import MEMORIES
from ...strict import StrictModel


class KvFiles(StrictModel):
    """The KV half of a memory.

    Attributes:
        tokens: P, how many memory tokens.
        sentinel: the token id that stands for each of them: prompts begin with P of it.
        file: the state without flash attention, in the folder of memories.
        file_flash_attention: the state with it.
    """

    tokens: int
    sentinel: int
    file: str
    file_flash_attention: str


class MemoryFiles(StrictModel):
    """One memory; a half that is None is off, or part of the weights."""

    lora: str | None = None
    kv: KvFiles | None = None

    def paths(self) -> list[str]:
        """Its files, from the export's folder."""
        states = [] if self.kv is None else [self.kv.file, self.kv.file_flash_attention]
        return [*([] if self.lora is None else [self.lora]), *(f"{MEMORIES}/{name}" for name in states)]


class Serving(StrictModel):
    """All files of an export.

    Attributes:
        model: the backbone.
        architecture: llama.cpp's.
        type: of its matrices.
        context: positions.
        state_version: of state files.
        cache_type: of the cache that state files are for.
        memories: by domain; llama-server numbers LoRA adapters in this order.
    """

    model: str
    architecture: str
    type: str
    context: int
    state_version: int
    cache_type: str
    memories: dict[str, MemoryFiles]

    @property
    def kv(self) -> dict[str, KvFiles]:
        """The KV halves by domain."""
        return {name: files.kv for name, files in self.memories.items() if files.kv is not None}

    @property
    def adapters(self) -> dict[str, str]:
        """The LoRA adapters by domain, in the order that llama-server numbers them."""
        return {name: files.lora for name, files in self.memories.items() if files.lora is not None}
