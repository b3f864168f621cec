"""What koffkit's own runtime answers, and how a consumer's answers compare with it.

Legend: T tokens of a prompt with its completion, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from koffkit import KoffModel
from koffkit.parity.probe import _Float64

NEW_TOKENS = 64
TOP = 200
"""Log-probabilities of each step that are compared."""


@dataclass(frozen=True)
class Compared:
    """One condition in one setting of a consumer.

    Attributes:
        equal: greedy tokens that are those of koffkit.
        tokens: of how many.
        max_abs: largest |difference| of a log-probability to float64, up to the first token that differs;
            None: the consumer tells none.
        kl: mean over steps, in nats.
        reason: why there is nothing to compare.
    """

    equal: int = 0
    tokens: int = 0
    max_abs: float | None = None
    kl: float | None = None
    reason: str = ""


class Reference:
    """The runtime's answers for one export of format `hf`.

    Args:
        export: the folder.
        asked: what is asked, see `tests.consumers`.
        new_tokens: of every completion.
        suppressing: consumers have a way to never choose some tokens; else a text ends where it ends.
    """

    what = "tokens"

    def __init__(
        self,
        export: Path,
        asked: Sequence[Mapping[str, Any]],
        new_tokens: int = NEW_TOKENS,
        *,
        suppressing: bool = True,
    ) -> None:
        model = KoffModel.from_pretrained(export, dtype=torch.float32)
        self.asked, self.new_tokens, self.tokenizer = list(asked), new_tokens, model.tokenizer
        self.suppress = _suppressed(model) if suppressing else []
        ends = model.model.generation_config.eos_token_id
        self._ends = [] if suppressing or ends is None else [ends] if isinstance(ends, int) else list(ends)
        different = {str(one): one for one in self.asked}
        self.ids = {key: _greedy(model, one, new_tokens, self.suppress) for key, one in different.items()}
        single = {key: _steps(model, one, self.ids[key]) for key, one in different.items()}
        del model
        exact = KoffModel.from_pretrained(export, dtype=torch.float64)
        with _Float64():  # norms and rotary angles, too
            self.exact = {key: _steps(exact, one, self.ids[key]) for key, one in different.items()}
        self.floor = max(_difference(single[key], self.exact[key]) for key in different)

    def questions(self) -> dict[str, Any]:
        """The object for the consumer's program."""
        top = min(TOP, next(iter(self.exact.values())).shape[-1])
        return {"asked": self.asked, "new_tokens": self.new_tokens, "suppress": self.suppress, "top": top}

    def compare(self, answers: Sequence[Mapping[str, Any] | None]) -> Iterator[Compared | None]:
        """A consumer's answers in one setting, one for each question; None where none is given."""
        for asked, given in zip(self.asked, answers, strict=True):
            yield None if given is None else self._one(str(asked), given)

    def _one(self, key: str, given: Mapping[str, Any]) -> Compared:
        if "reason" in given:
            return Compared(reason=given["reason"])
        ids = _before(self.ids[key], self._ends)
        equal = self._equal(ids, given)
        worst, divergences = 0.0, []
        for step in range(min(equal + 1, len(given.get("top", ())))):
            exact = self.exact[key][step]
            told = torch.tensor([index for index, _ in given["top"][step]])
            found = torch.tensor([value for _, value in given["top"][step]], dtype=torch.float64)
            worst = max(worst, float((exact[told] - found).abs().max()))
            divergences.append(_kl(exact[told], found))
        if not divergences:  # it tells tokens only
            return Compared(equal, len(ids))
        return Compared(equal, len(ids), worst, sum(divergences) / len(divergences))

    def _equal(self, ids: Sequence[int], given: Mapping[str, Any]) -> int:
        """How many tokens there are before the first other one. Of a text: before the first that it does not
        begin with."""
        if "ids" in given:
            pairs = list(zip(ids, given["ids"], strict=False))
            return next((step for step, (one, other) in enumerate(pairs) if one != other), len(pairs))
        if self._text(ids) == given["text"]:
            return len(ids)
        counts = range(len(ids) - 1, 0, -1)
        return next((n for n in counts if given["text"].startswith(self._text(ids[:n]))), 0)

    def _text(self, ids: Sequence[int]) -> str:
        """As servers write it: special tokens are no text."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _before(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The tokens before the first that ends a text."""
    end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[:end])


def _suppressed(model: KoffModel) -> list[int]:
    """Tokens that end or mark something, since where a text ends is not what is compared; and parts of
    characters, of which llama-server tells no probabilities."""
    tokenizer, size = model.tokenizer, model.model.config.vocab_size
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = added | set(tokenizer.all_special_ids)
    ids |= {
        index
        for index, text in enumerate(tokenizer.batch_decode([[i] for i in range(size)]))
        if "\ufffd" in text
    }
    return sorted(index for index in ids if index < size)


@contextmanager
def _halves(model: KoffModel, asked: Mapping[str, Any]) -> Iterator[str | None]:
    """Attach the halves that are asked for."""
    name = asked["memory"]
    if asked["whole"]:
        yield name
        return
    assert asked["lora"] and not asked["kv"], "a KV memory alone is not asked for"
    loaded = model.store._loaded
    whole = loaded[name]
    loaded[name] = replace(whole, kv={})
    yield name
    loaded[name] = whole


def _logits(model: KoffModel, asked: Mapping[str, Any], ids: Sequence[int]) -> Tensor:
    with _halves(model, asked) as name:
        return model.logits(torch.tensor([[*asked["prompt"], *ids]]), name)[0]


def _greedy(model: KoffModel, asked: Mapping[str, Any], count: int, suppress: Sequence[int]) -> list[int]:
    """`count` greedy tokens: those that transformers writes with a cache, if each is the likeliest by a
    forward pass over the whole text, too; else one by one without a cache, which is what the weights say."""
    forbidden = torch.tensor(suppress, dtype=torch.long)
    written = _written(model, asked, count, suppress)
    logits = _logits(model, asked, written)[len(asked["prompt"]) - 1 : -1]
    logits[:, forbidden] = -torch.inf
    if logits.argmax(-1).tolist() == written:
        return written
    ids: list[int] = []
    for _ in range(count):
        last = _logits(model, asked, ids)[-1]
        last[forbidden] = -torch.inf
        ids.append(int(last.argmax()))
    return ids


@torch.no_grad()
def _written(model: KoffModel, asked: Mapping[str, Any], count: int, suppress: Sequence[int]) -> list[int]:
    """What transformers writes, past the end of a text, too."""
    prompt = torch.tensor([asked["prompt"]])
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": count, "eos_token_id": -1}
    if suppress:
        options["suppress_tokens"] = list(suppress)
    with _halves(model, asked) as name, model.attached(name):
        found = model.model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    return [int(token) for token in found[0, prompt.shape[1] :]]


def _steps(model: KoffModel, asked: Mapping[str, Any], ids: Sequence[int]) -> Tensor:
    """Log-probabilities at every step, [steps, V]."""
    logits = _logits(model, asked, ids)[len(asked["prompt"]) - 1 : -1]
    return logits.double().log_softmax(-1)


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest over the most likely tokens, which is what consumers tell."""
    ids = other.topk(min(TOP, other.shape[-1]), dim=-1).indices
    return float((one - other).gather(-1, ids).abs().max())


def _kl(exact: Tensor, found: Tensor) -> float:
    """KL over the tokens that the consumer told. Its probabilities are rounded, so what is missing to 1 is
    not the rest of the vocabulary."""
    p, q = exact.log_softmax(-1), found.log_softmax(-1)
    return float((p.exp() * (p - q)).sum())
