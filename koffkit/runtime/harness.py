"""A model with memories as lm-eval sees it: `koffkit evaluate PATH --task arc_easy,piqa`.

Importing this module also registers the model name `koffkit` with lm-eval, which finds no plug-ins by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401  # lm-eval itself fills no registry that has a model
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from ..devices import find_device
from .model import KoffModel

Pair = tuple[tuple[str, str], list[int], list[int]]
"""Context and continuation as texts, then as token ids."""
NEW_TOKENS = 256
"""The most that a task of free text gets, unless it says otherwise."""


@register_model("koffkit")
class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm-eval is an extra
    """An export, or a plain checkpoint, with one memory for all prompts or with the one the router picks.

    Args:
        path: an export or a checkpoint folder.
        memory: a domain; `none` for the bare backbone; `auto`: the router reads each context and picks.
        device: kind of device; None: the accelerator of the machine, or the CPU.
        dtype: of the weights.
        batch_size: prompts at a time.
        progress: gets the prompts done and the total; by default nobody does.

    Raises:
        UsageError: there is no such export, memory or router.
    """

    def __init__(
        self,
        path: str | Path,
        memory: str = "none",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int | str = 4,
        progress: Callable[[int, int], None] | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.model = KoffModel.from_pretrained(path, device=find_device(device), dtype=dtype)
        self.tokenizer = self.model.tokenizer
        self.memory = None if memory == "none" else memory
        if self.memory == "auto":
            self.model.route(["a"])  # refuse now what has no router
        elif self.memory is not None:
            self.model.rows(self.memory, 1)
        self.batch_size = int(batch_size)
        self.picked: dict[str, int] = {}  # how often the router picked each memory, `none` included
        self._progress = progress or (lambda done, total: None)
        config = self.model.model.config
        self._longest = int(getattr(config, "max_position_embeddings", 2048)) - 1

    @property
    def eot_token_id(self) -> int:
        token: int = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, with the special tokens that the tokenizer itself puts, unless told otherwise."""
        special = True if add_special_tokens is None else add_special_tokens
        ids: list[int] = self.tokenizer(string, add_special_tokens=special, verbose=False)["input_ids"]
        return ids

    def _loglikelihood_tokens(self, requests: list[Pair], **_: Any) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        alike: dict[tuple[str, tuple[int, ...]], list[int]] = {}  # choices of one token: read once
        for place, (texts, context, continuation) in enumerate(requests):
            row = (context + continuation)[-self._longest - 1 : -1]
            alike.setdefault((_read_by_router(*texts), tuple(row)), []).append(place)
        prompts, done = sorted(alike, key=lambda prompt: -len(prompt[1])), 0
        for _count, group in _grouped(prompts, self.batch_size):
            counts = [len(alike[prompt]) for prompt in group]
            logits = self._logits([row for _, row in group], [text for text, _ in group], counts)
            for prompt, predicted in zip(group, logits, strict=True):
                for place in alike[prompt]:
                    found[place] = _scored(predicted, requests[place][2])
            done += sum(counts)
            self._progress(done, len(requests))
        return found

    def _memories(self, texts: Sequence[str], counts: Sequence[int]) -> list[str | None]:
        """The memory of each prompt, which so many requests share."""
        if self.memory != "auto":
            return [self.memory] * len(texts)
        chosen = [name for name, _ in self.model.route(list(texts))]
        for name, count in zip(chosen, counts, strict=True):
            self.picked[name or "none"] = self.picked.get(name or "none", 0) + count
        return chosen

    def _logits(
        self, rows: Sequence[Sequence[int]], texts: Sequence[str], counts: Sequence[int]
    ) -> list[Tensor]:
        """What follows each token of each row, [T, V]."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.eot_token_id)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        device = self.model.device
        logits = self.model.logits(ids.to(device), self._memories(texts, counts), mask.to(device))
        return [logits[place, : len(row)] for place, row in enumerate(rows)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        found = []
        for request in requests:
            (text,) = request.args
            ids = self.tok_encode(text, add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self._longest, 1)
            pairs = [((text, ""), *make_disjoint_window(window)) for window in windows]
            found.append(sum(score for score, _ in self._loglikelihood_tokens(pairs)))
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        texts = []
        for done, group in _grouped(requests, 1):
            ((context, options),) = [request.args for request in group]
            memory = self._memories([context], [1])
            limit = int(options.get("max_gen_toks", NEW_TOKENS))
            (text,) = self.model.generate([context], memory, max_new_tokens=limit)
            texts.append(_until(text, options.get("until", [])))
            self._progress(done, len(requests))
        return texts


def _read_by_router(context: str, continuation: str) -> str:
    """What a user would have written: the context, if there is one."""
    return context or continuation


def _scored(logits: Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    """Log-likelihood of a continuation, whose tokens the last of these logits [T, V] predict, and whether it
    is the likeliest at every token."""
    targets = torch.tensor(continuation, device=logits.device)
    log_probabilities = logits[-len(targets) :].float().log_softmax(-1)
    chosen = log_probabilities.gather(-1, targets[:, None]).sum()
    return float(chosen), bool((log_probabilities.argmax(-1) == targets).all())


def _grouped(items: Sequence[Any], size: int) -> Iterator[tuple[int, Sequence[Any]]]:
    """Groups of at most `size` items, each with how many are done after it."""
    for first in range(0, len(items), size):
        group = items[first : first + size]
        yield first + len(group), group


def _until(text: str, stops: str | Sequence[str]) -> str:
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop:
            text = text.partition(stop)[0]
    return text
