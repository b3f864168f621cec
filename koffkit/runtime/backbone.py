"""A backbone in memory with its memories: token ids in, logits out; `KoffModel` adds texts and routing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.spec import ModelSpec
from ..devices import find_device, parse_dtype
from ..model.bundle_reader import BundleReader
from ..model.host_pages import HostPages
from ..model.kv_attention import use_koffkit_attention
from ..model.neuron_memory import use_neuron_memory
from ..model.per_call import for_this_call
from ..model.resident import CallStates
from .generation import one_for_each, positions_of
from .store import MemoryStore

Memory = str | Sequence[str | None] | None
"""One name for all rows of a batch, a list with the name of each row, or None: the bare backbone."""
_ATTACHED: ContextVar[Mapping[int, Memory]] = ContextVar("koffkit_attached", default=MappingProxyType({}))


class Backbone:
    """A backbone and its memories.

    Several threads may call it at once, each with its own memories.

    Args:
        model: the transformers model.
        digest: of its folder.
        path: its folder.
        memory_budget: see `KoffModel.from_pretrained`.
        host_memory_budget: see there.

    Attributes:
        model: the transformers model, bare outside `attached`.
        store: the memories.
    """

    def __init__(
        self,
        model: Any,
        digest: str,
        path: Path,
        memory_budget: int | None = None,
        host_memory_budget: int | None = None,
    ) -> None:
        use_koffkit_attention(model)
        use_neuron_memory(model)
        self.model: Any = model.eval()
        self._digest, self._path = digest, path
        self._widths = ModelSpec(config=model.config.to_dict(), path=path).widths
        modules = dict(model.named_modules())
        self._states = CallStates(model, modules)
        pages = None if host_memory_budget is None else HostPages(host_memory_budget)
        reader = BundleReader(model, modules, self._widths, pages)
        self.store = MemoryStore(reader, self._states.forget, memory_budget, unused=reader.take_back)
        self._memory: str | None = None

    @property
    def domains(self) -> list[str]:
        """Names of the memories, in the order they came."""
        return self.store.domains

    @property
    def device(self) -> torch.device:
        """The device that token ids must be on."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def config(self) -> Any:
        """The backbone's configuration, of transformers."""
        return self.model.config

    @property
    def generation_config(self) -> Any:
        """What `generate` does unless it is told otherwise, of transformers."""
        return self.model.generation_config

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Any:
        """Move backbone and memories, and return the model itself; no call may be running.

        Args:
            device: for example `cuda`; None: stay.
            dtype: of the weights; None: as it is.

        Raises:
            ResourceError: there is no such device.
        """
        place = self.device if device is None else find_device(device)
        self.model.to(device=place, dtype=self.dtype if dtype is None else parse_dtype(dtype))
        self.store.reload()
        return self

    def attach(self, domain: str) -> None:
        """Make `domain` the memory of calls that do not name one.

        Raises:
            UsageError: it is not loaded.
        """
        self._memory = self.store.known(domain)

    def detach(self) -> None:
        """Return to the bare backbone."""
        self._memory = None

    @property
    def memory(self) -> str | None:
        """The domain of the attached memory; None: the bare backbone."""
        return self._memory

    @contextmanager
    def attached(self, memory: Memory) -> Iterator[None]:
        """Give calls of this thread a memory until the block ends, those of `model` itself, too.

        Args:
            memory: one name for all rows of a batch, a list with the name of each row (None = bare backbone),
                or None.

        Raises:
            UsageError: a memory is not loaded.
        """
        rows = [memory] if memory is None or isinstance(memory, str) else list(memory)
        with self.store.use(rows) as loaded, for_this_call(self._states.of(loaded)):
            token = _ATTACHED.set({**_ATTACHED.get(), id(self): memory})
            try:
                yield
            finally:
                _ATTACHED.reset(token)

    def rows(self, memory: Memory, count: int) -> list[str | None]:
        """The memory of each of `count` prompts; None = bare backbone.

        Args:
            memory: one name for all, a list of names (None = bare backbone), None, or "attached".
            count: number of prompts.

        Raises:
            UsageError: a memory is not loaded, or there are more or fewer names than prompts.
        """
        if memory == "attached":
            memory = _ATTACHED.get().get(id(self), self._memory)
        names = one_for_each(memory, count)
        return [None if name is None else self.store.known(name) for name in names]

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, *, memory: Memory = "attached", **options: Any) -> Any:
        """What the transformers model returns, each row with its memory.

        Args:
            input_ids: [B, T].
            memory: see `rows`.
            options: of the model, for example `attention_mask` or `past_key_values`. Unless they have
                `position_ids`, the first token that is no padding is at position 0.

        Raises:
            UsageError: a memory is not loaded.
        """
        mask = options.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2 and options.get("position_ids") is None:
            options["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0)[:, -input_ids.shape[1] :]
        with self.attached(self.rows(memory, input_ids.shape[0])):
            return self.model(input_ids=input_ids, **options)

    @torch.no_grad()
    def logits(
        self,
        input_ids: Tensor,
        memory: Memory = "attached",
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Compute logits.

        Args:
            input_ids: [B, T], on `device`.
            memory: see `rows`.
            attention_mask: [B, T], 0 = padding, on either side; None = no padding.
            position_ids: [B, T], of texts that are packed into rows without padding: where they restart at 0,
                another text begins, which sees its memory and nothing before it. None = one text a row.

        Returns:
            [B, T, V].

        Raises:
            UsageError: the shape of the mask is not that of the ids, or a memory is not loaded.
        """
        positions = positions_of(attention_mask, input_ids) if position_ids is None else position_ids
        given = {"attention_mask": attention_mask, "position_ids": positions, "use_cache": False}
        output: Tensor = self(input_ids, memory=memory, **given).logits
        return output

    def _hidden(self, input_ids: Tensor, layer: int) -> Tensor:
        """Hidden states [B, T, D] of the bare backbone after `layer` layers."""
        with self.attached(None):
            hidden_states: Tensor = self.model(
                input_ids=input_ids, use_cache=False, output_hidden_states=True
            ).hidden_states[layer]
        return hidden_states
