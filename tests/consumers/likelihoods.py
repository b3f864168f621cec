"""A small task of multiple choice, its scores by koffkit's own runtime, and how a harness's compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from koffkit import KoffModel
from koffkit.parity.probe import _Float64

from .reference import Compared, _halves

CONTEXTS = (
    "quiet river over the green",
    "seven lamps under the bright",
    "The capital of the country is",
    "Water is made of hydrogen and",
    "north house sings slow",
    "The king was succeeded by his",
    "cloud walks over stone and",
    "One hundred divided by ten is",
)
CHOICES = (" stone", " oxygen", " son and his heirs", " ten", " the quiet north")


class Likelihoods:
    """The runtime's log-likelihoods of every choice, in float64.

    Args:
        export: of format `hf`.
        asked: which memories, see `tests.consumers`; prompts are those of the task.
    """

    what = "answers"

    def __init__(self, export: Path, asked: Sequence[Mapping[str, Any]]) -> None:
        self.asked = list(asked)
        different = {str(one): one for one in self.asked}
        model = KoffModel.from_pretrained(export, dtype=torch.float32)
        single = {key: _scores(model, one) for key, one in different.items()}
        del model
        exact = KoffModel.from_pretrained(export, dtype=torch.float64)
        with _Float64():
            self.exact = {key: _scores(exact, one) for key, one in different.items()}
        self.floor = max(float((single[key] - self.exact[key]).abs().max()) for key in different)

    def questions(self) -> dict[str, Any]:
        """The object for the consumer's program."""
        return {"asked": self.asked, "contexts": CONTEXTS, "choices": CHOICES}

    def compare(self, answers: Sequence[Mapping[str, Any] | None]) -> Iterator[Compared | None]:
        """A harness's answers in one setting: `likelihoods`, [contexts][choices]; `equal` counts contexts
        with the same choice."""
        for asked, given in zip(self.asked, answers, strict=True):
            if given is None or "reason" in given:
                yield None if given is None else Compared(reason=given["reason"])
                continue
            exact = self.exact[str(asked)]
            found = torch.tensor(given["likelihoods"], dtype=torch.float64)
            equal = int((exact.argmax(-1) == found.argmax(-1)).sum())
            yield Compared(equal, len(exact), float((exact - found).abs().max()))


def _scores(model: KoffModel, asked: Mapping[str, Any]) -> Tensor:
    """Log-likelihood of every choice after every context, [contexts, choices]."""
    return torch.tensor(
        [[_score(model, asked, context, choice) for choice in CHOICES] for context in CONTEXTS],
        dtype=torch.float64,
    )


def _score(model: KoffModel, asked: Mapping[str, Any], context: str, choice: str) -> float:
    ids, before = model.tokenizer(context + choice).input_ids, len(model.tokenizer(context).input_ids)
    with _halves(model, asked) as name:
        logits = model.logits(torch.tensor([ids]), name)[0, before - 1 : -1].double()
    return float(logits.log_softmax(-1).gather(-1, torch.tensor(ids[before:])[:, None]).sum())
