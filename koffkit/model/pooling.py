"""Embedding texts as the mean of a model's hidden states.

Legend: N texts, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checkpoint.vocabulary import require_known


def mean_over_tokens(states: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mean hidden states [N, D] in float32 from [N, T, D]; row n has `lengths[n]` tokens, then padding."""
    there = (
        torch.arange(states.shape[1], device=states.device)
        < torch.tensor(lengths, device=states.device)[:, None]
    )
    return (states.float() * there[..., None]).sum(1) / there.sum(1, keepdim=True)


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Token ids [N, T], padded on the right: a causal model does not look ahead, so no mask is needed."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])


def pooled_features(
    hidden: Callable[[Tensor], Tensor],
    tokenizer: Any,
    max_tokens: int,
    batch_size: int,
    device: Any,
    *,
    vocab_size: int,
) -> Callable[[Sequence[str]], NDArray[np.float32]]:
    """A function from texts to mean hidden states [N, D].

    Args:
        hidden: from token ids [N, T] to hidden states [N, T, D].
        tokenizer: the model's.
        max_tokens: tokens of a text that are read.
        batch_size: texts at a time.
        device: where token ids must be.
        vocab_size: rows of the model's embedding; a text with a token beyond is a `DataError`.
    """

    @torch.no_grad()
    def features(texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [ids[:max_tokens] or [0] for ids in tokenizer(list(texts), verbose=False)["input_ids"]]
        for text, row in zip(texts, rows, strict=True):
            require_known(row, vocab_size, tokenizer, f"the router's text {text[:40]!r}")
        means = []
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            means.append(mean_over_tokens(hidden(pad(part).to(device)), [len(row) for row in part]).cpu())
        return torch.cat(means).numpy()

    return features
