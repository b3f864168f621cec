"""KV memories in vLLM: a KV connector that hands out what an export of format `vllm` holds.

A memory of P tokens stands before the text. In its place the prompt has P sentinel tokens: one token, P
times, another one for every memory, since vLLM's prefix cache knows blocks by their tokens. The scheduler
is told that they are computed already, and their keys and values, rotated for the positions that they stand
for, are written into the cache through each layer's own update. The text starts at position P.

vLLM loads this module by name, in its own environment; nothing else in koffkit imports it.

Legend: K KV heads, P memory tokens, H head dim.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata
from vllm.distributed.parallel_state import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from vllm.logger import init_logger

from .vllm_memories import read_memories

logger = init_logger("vllm.koffkit")

PARAMETER = "koffkit_memory"
"""In a request's `kv_transfer_params`: the memory, for requests whose LoRA name does not name it."""
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True)
class Load:
    """Tokens `start` to P of a memory, to be written into a request's blocks."""

    memory: str
    blocks: list[int]
    start: int


@dataclass
class Loads(KVConnectorMetadata):
    """What one step writes."""

    loads: list[Load] = field(default_factory=list)


class KoffkitConnector(KVConnectorBase_V1):
    """`--kv-transfer-config '{"kv_connector": "KoffkitConnector", "kv_connector_module_path":
    "koffkit.serving.vllm_connector", "kv_role": "kv_consumer", "kv_connector_extra_config": {"export":
    DIR}}'`
    """

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        export = self._kv_transfer_config.get_from_extra_config("export", ".")
        self._memories = read_memories(Path(export))
        self._by_sentinel = {memory.sentinel: name for name, memory in self._memories.items()}
        self._block_size = int(vllm_config.cache_config.block_size)
        self._loads: list[Load] = []

    # The scheduler's side.

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """How many memory tokens are still to be written for a request."""
        name = self._chosen(request)
        if name is None:
            return 0, False
        return max(0, self._memories[name].tokens - num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Remember where a request's memory tokens go."""
        name = self._chosen(request) if num_external_tokens else None
        if name is not None:
            start = self._memories[name].tokens - num_external_tokens
            self._loads.append(Load(name, list(blocks.get_block_ids()[0]), start))

    def build_connector_meta(self, scheduler_output: Any) -> Loads:
        """What the next step writes."""
        loads, self._loads = self._loads, []
        return Loads(loads)

    def _chosen(self, request: Any) -> str | None:
        """The memory whose sentinels a prompt begins with, if the request may have it."""
        ids = request.prompt_token_ids or []
        name = self._by_sentinel.get(ids[0]) if ids else None
        if name is None:
            return None
        memory = self._memories[name]
        if len(ids) <= memory.tokens or any(token != memory.sentinel for token in ids[: memory.tokens]):
            return None  # the token may stand in a text, too
        if memory.lora and name not in (_lora_of(request), _parameter_of(request)):
            logger.error(
                "request %s: its prompt begins with the sentinels of memory %s, but it is for %s; its KV "
                "memory is not used. Name the memory as the model, or as kv_transfer_params.%s.",
                request.request_id,
                name,
                _lora_of(request) or "the bare backbone",
                PARAMETER,
            )
            return None
        return name

    # The workers' side.

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Write the keys and values of the step's memories, layer by layer."""
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Loads)
        for load in metadata.loads:
            for name, layer in forward_context.no_compile_layers.items():
                if getattr(layer, "kv_cache", None) is not None:
                    self._write(load, name, layer)

    def _write(self, load: Load, layer_name: str, layer: Any) -> None:
        found = LAYER.search(layer_name)
        assert found is not None, layer_name
        memory = self._memories[load.memory]
        cache: Tensor = layer.kv_cache
        positions = torch.arange(load.start, memory.tokens)
        blocks = torch.tensor(load.blocks)[positions // self._block_size]
        slots = (blocks * self._block_size + positions % self._block_size).to(cache.device)
        key, value = (
            _own_heads(half[load.start :]).to(cache.device, cache.dtype).contiguous()
            for half in memory.halves[int(found[1])]
        )
        layer.impl.do_kv_cache_update(layer, key, value, cache, slots)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: `start_load_kv` has written everything."""

    def save_kv_layer(self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing: memories are only read."""

    def wait_for_save(self) -> None:
        """Nothing."""


def _own_heads(half: Tensor) -> Tensor:
    """Of keys or values [P, K, H] the heads that this worker has, under tensor parallelism."""
    size, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
    heads = half.shape[1]
    if size > heads:  # vLLM repeats heads
        return half[:, rank * heads // size : rank * heads // size + 1]
    return half[:, rank * heads // size : (rank + 1) * heads // size]


def _lora_of(request: Any) -> str | None:
    return None if request.lora_request is None else str(request.lora_request.lora_name)


def _parameter_of(request: Any) -> str | None:
    return (request.kv_transfer_params or {}).get(PARAMETER)
