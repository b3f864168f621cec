"""Training shared by all kinds of router: the loop, and random prefixes of documents, because prompts are
beginnings of documents."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 64
LEAST_WORDS = 3
Example = TypeVar("Example")


def minimise(
    optimizer: Any,
    examples: list[Example],
    loss_of: Callable[[list[Example]], Tensor],
    *,
    epochs: int,
    batch_size: int,
    rng: random.Random | None,
    check_interrupt: Callable[[], None] = lambda: None,
    max_norm: float | None = None,
) -> None:
    """Take one optimizer step per batch.

    Args:
        optimizer: a torch optimizer; LBFGS may evaluate the loss of a batch several times.
        examples: the examples; shuffled in place in every epoch.
        loss_of: the differentiable loss of a batch.
        epochs: passes over the examples.
        batch_size: examples at a time.
        rng: shuffles the examples; None keeps their order.
        check_interrupt: called before every loss; it may raise.
        max_norm: the gradient is clipped to this norm.
    """
    import torch

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def evaluate(batch: list[Example]) -> Tensor:
        check_interrupt()
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        return loss

    for _ in range(epochs):
        if rng is not None:
            rng.shuffle(examples)
        for start in range(0, len(examples), batch_size):
            batch = examples[start : start + batch_size]
            optimizer.step(lambda batch=batch: evaluate(batch))


def labelled(texts: Mapping[str, Sequence[str]]) -> list[tuple[str, int]]:
    """Every document with the index of its label."""
    return [(text, index) for index, label in enumerate(texts) for text in texts[label]]


def class_weights(texts: Mapping[str, Sequence[str]]) -> Tensor:
    """Weights [C] that give every label the same influence, however many documents it has."""
    import torch

    total = sum(len(documents) for documents in texts.values())
    return torch.tensor([total / (len(texts) * max(1, len(documents))) for documents in texts.values()])


def random_prefix(text: str, rng: random.Random) -> str:
    """A text, cut short after a random number of words with probability 1/2."""
    words = text.split(" ")
    if len(words) <= LEAST_WORDS or rng.random() < 0.5:
        return text
    return " ".join(words[: rng.randint(LEAST_WORDS, len(words))])
