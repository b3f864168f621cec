"""The rows that are being answered, and their keys and values.

Rows are padded on the left to the longest one, so that the newest token of every row is in the last column.
Text positions start at 0 whatever padding there is (memory keys are not rotated). Every layer's cache holds
the whole text, sliding windows are a matter of the mask; layers may differ in heads and widths.

Legend: B rows, S tokens in the cache, T new tokens, K KV heads, H head dim, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from .engine_rows import Row

Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [B, K, S, H]."""


class Batch:
    """Rows that are answered together.

    Args:
        model: a `KoffModel`.

    Attributes:
        rows: in the order of the batch.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        parameters = inspect.signature(model.model.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"  # before transformers 5.24
        self.rows: list[Row] = []
        self._memories: dict[Row, ExitStack] = {}  # in use between steps, too
        self._layers: Layers = []
        self._mask = torch.zeros(0, 0, dtype=torch.long)

    @torch.no_grad()
    def join(self, rows: Sequence[Row]) -> None:
        """Read the prompts of new rows and give each its first token.

        Args:
            rows: at least one. If this raises, none of them has joined.
        """
        store, memories = self._model.store, {row: ExitStack() for row in rows}
        try:
            with store.use([row.memory for row in rows]):  # loads them
                for row, own in memories.items():
                    own.enter_context(store.use([row.memory]))
            self._read(rows)
        except BaseException:
            for own in memories.values():
                own.close()
            raise
        self._memories |= memories

    def _read(self, rows: Sequence[Row]) -> None:
        """`join`, with the memories of the rows in use."""
        width = max(len(row.request.ids) for row in rows)
        ids = [[0] * (width - len(row.request.ids)) + list(row.request.ids) for row in rows]
        mask = [[0] * (width - len(row.request.ids)) + [1] * len(row.request.ids) for row in rows]
        there = torch.tensor(mask, device=self._model.device)
        positions = (there.cumsum(-1) - 1).clamp_min(0)
        cache = DynamicCache()  # without a config: no layer forgets what is beyond a window
        logits = self._forward(rows, torch.tensor(ids, device=there.device), there, positions, cache)
        tokens = next_tokens(logits, rows)
        self._add(rows, _layers_of(cache), there)
        for row, token in zip(rows, tokens, strict=True):
            row.take(token)

    @torch.no_grad()
    def step(self) -> None:
        """Give every row its next token."""
        lengths = [row.length for row in self.rows]
        device = self._mask.device
        ids = torch.tensor([[row.token] for row in self.rows], device=device)
        mask = F.pad(self._mask, (0, 1), value=1)
        cache = DynamicCache(self._layers)
        logits = self._forward(self.rows, ids, mask, torch.tensor(lengths, device=device)[:, None], cache)
        self._layers, self._mask = _layers_of(cache), mask
        for row, token in zip(self.rows, next_tokens(logits, self.rows), strict=True):
            row.take(token)

    @torch.no_grad()
    def keep(self, places: Sequence[int]) -> None:
        """Drop all rows but these, and the padding that none of them needs."""
        rows = [self.rows[place] for place in places]
        if not rows:
            self.clear()
            return
        for row in set(self.rows).difference(rows):
            self._memories.pop(row).close()
        self.rows = rows
        index = torch.tensor(places, device=self._mask.device)
        width = max(row.length for row in self.rows)
        self._mask = self._mask[index, -width:]
        self._layers = [(key[index, :, -width:], value[index, :, -width:]) for key, value in self._layers]

    def clear(self) -> None:
        """Drop all rows."""
        for own in self._memories.values():
            own.close()
        self.rows, self._layers, self._memories = [], [], {}
        self._mask = torch.zeros(0, 0, dtype=torch.long)

    def _forward(
        self, rows: Sequence[Row], ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache
    ) -> Tensor:
        """Logits [B, V] of the last column of ids [B, T]; mask is [B, S + T], positions [B, T]."""
        with self._model.attached([row.memory for row in rows]):
            output = self._model.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **{self._cache_name: cache},
            )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _add(self, rows: Sequence[Row], layers: Layers, mask: Tensor) -> None:
        if self.rows:
            width = max(mask.shape[1], self._mask.shape[1])
            mask = torch.cat([_padded(self._mask, width), _padded(mask, width)])
            layers = [
                (
                    torch.cat([_widened(old_key, width), _widened(key, width)]),
                    torch.cat([_widened(old_value, width), _widened(value, width)]),
                )
                for (old_key, old_value), (key, value) in zip(self._layers, layers, strict=True)
            ]
        self.rows, self._layers, self._mask = [*self.rows, *rows], layers, mask


def next_tokens(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """The next token of each row, from logits [B, V]."""
    tokens: list[int] = logits.argmax(-1).tolist()
    for place, row in enumerate(rows):
        if row.generator is not None:
            tokens[place] = _sampled(logits[place].float().cpu(), row)
    return tokens


def _sampled(logits: Tensor, row: Row) -> int:
    sampling, scores = row.request.sampling, logits[None]
    scores = TemperatureLogitsWarper(float(sampling.temperature))(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(float(sampling.top_p))(None, scores)
    return int(torch.multinomial(scores.softmax(-1)[0], 1, generator=row.generator))


def _layers_of(cache: DynamicCache) -> Layers:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _padded(mask: Tensor, width: int) -> Tensor:
    return F.pad(mask, (width - mask.shape[1], 0))


def _widened(states: Tensor, width: int) -> Tensor:
    """[B, K, S, H] with zeros before it, up to `width` tokens."""
    return F.pad(states, (0, 0, width - states.shape[2], 0))
