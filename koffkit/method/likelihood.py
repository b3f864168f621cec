"""Log-likelihood and KL divergence of token predictions: all figures of an
evaluation are computed here (`losses` holds the training losses).

Scores are computed chunk by chunk, so that the float32 log-probabilities [N, V] of all tokens never exist at
once.

Legend: N tokens, C tokens of a chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_TOKENS = 1024

LogitsOf = Callable[[slice], Tensor]
"""Logits [C, V] of a range of the N tokens."""


@dataclass
class TokenSums:
    """Sums over tokens, in nats.

    Args:
        nll: negative log-likelihood of the targets.
        kl: KL(reference || model).
        tokens: how many tokens were scored.
    """

    nll: float = 0.0
    kl: float = 0.0
    tokens: int = 0

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood; infinite beyond the range of a float."""
        return exp_or_inf(self.nll / self.tokens)

    @property
    def mean_kl(self) -> float:
        """Nats per token."""
        return self.kl / self.tokens


def projected(hidden: Tensor, head: Tensor) -> LogitsOf:
    """Logits computed chunk by chunk from last hidden states [N, D] and the vocabulary projection [V, D].

    Args:
        hidden: last hidden states [N, D].
        head: the vocabulary projection [V, D].
    """
    return lambda rows: F.linear(hidden[rows].to(head.dtype), head)


def given(logits: Tensor) -> LogitsOf:
    """Existing logits [N, V]."""
    return lambda rows: logits[rows]


def add_tokens(
    sums: TokenSums,
    count: int,
    model: LogitsOf,
    *,
    targets: Tensor | None = None,
    reference: LogitsOf | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> None:
    """Add the scores of `count` tokens to `sums`.

    Args:
        model: logits of the model that is scored.
        targets: the token that follows each position, [N]; None: no likelihood is computed.
        reference: logits of the model that it is compared with; None: no KL is computed.
        chunk_tokens: tokens whose log-probabilities exist at once.
    """
    for first in range(0, count, chunk_tokens):
        rows = slice(first, first + chunk_tokens)
        log_q = _log_probabilities(model(rows))
        if targets is not None:
            sums.nll += F.nll_loss(log_q, targets[rows], reduction="sum").item()
        if reference is not None:
            log_p = _log_probabilities(reference(rows))
            sums.kl += F.kl_div(log_q, log_p, reduction="sum", log_target=True).item()
    sums.tokens += count


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.to(torch.float32).log_softmax(-1)


def exp_or_inf(value: float) -> float:
    """`math.exp`, infinite where that would overflow."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def geometric_mean(values: list[float]) -> float:
    """The geometric mean of perplexities; infinite if one of them is."""
    return exp_or_inf(fmean(math.log(value) for value in values))
