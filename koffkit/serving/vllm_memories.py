"""The KV memories of an export of format `vllm`: what the connector writes into vLLM's cache, and what the
format's gate holds against the bundles. Beside vLLM packages that koffkit needs may be missing: no other
module of koffkit is imported.

Legend: L layers, K KV heads, P memory tokens, H head dim.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SERVING, TENSOR, WEIGHTS = "serving.json", "prompt_embeddings", "adapter_model.safetensors"


@dataclass(frozen=True)
class Memory:
    """The KV half of a memory.

    Attributes:
        folder: its cartridge.
        tokens: P.
        sentinel: the token id that stands for it.
        kv_heads: K.
        lora: whether it has a LoRA half, too.
    """

    folder: Path
    tokens: int
    sentinel: int
    kv_heads: int
    lora: bool

    @cached_property
    def halves(self) -> Tensor:
        """Keys and values, [L, 2, P, K, H]."""
        from safetensors.torch import load_file

        flat = load_file(self.folder / WEIGHTS)[TENSOR]
        head_dim = self._head_dim(flat.shape[1])
        halves: Tensor = flat.view(self.tokens, -1, 2, self.kv_heads, head_dim).permute(1, 2, 0, 3, 4)
        return halves

    def _head_dim(self, width: int) -> int:
        config = json.loads((self.folder / "adapter_config.json").read_text(encoding="utf-8"))
        return width // (2 * int(config["num_layers"]) * self.kv_heads)


def read_memories(export: Path) -> dict[str, Memory]:
    """The memories of an export that have a KV half, by name.

    Raises:
        ValueError: this is no export of format `vllm`.
    """
    path = export / SERVING
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; give the folder that `koffkit export --format vllm` made as `export` in "
            "kv_connector_extra_config."
        )
    entries = json.loads(path.read_text(encoding="utf-8"))["memories"]
    return {
        name: Memory(
            folder=export / entry["kv"]["path"],
            tokens=int(entry["kv"]["tokens"]),
            sentinel=int(entry["kv"]["sentinel"]),
            kv_heads=int(entry["kv"]["kv_heads"]),
            lora=entry["lora"] is not None,
        )
        for name, entry in entries.items()
        if entry["kv"] is not None
    }
