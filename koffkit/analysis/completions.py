"""How held-out texts go on: unpruned, bare, with the matched memory and with a wrong one.

Legend: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..arch.weights import vocab_size
from ..data.vocabulary import end_of_document
from ..progress import Progress
from ..run.finished import FinishedRun
from .opened import OpenedRun, load_memories, open_run

PROMPT, NEW = 24, 32
"""Tokens of a prompt, at most half of its document, and of what follows."""


def complete(
    run: FinishedRun, count: int, progress: Progress, *, device: str | None = None
) -> dict[str, Any]:
    """Complete prompts of every domain.

    Args:
        run: finished, with its base.
        count: prompts of each domain.
        progress: where to report.
        device: kind of device; None: the accelerator of the machine, or the CPU.

    Returns:
        `samples`: for each prompt `domain`, `prompt` and `continued` (text by condition).

    Raises:
        UsageError: the recipe or a memory is of a kind that this cannot load.
        DataError: the tokens that the run learned from are gone.
    """
    opened = open_run(run, progress, device=device)
    memories = load_memories(opened)
    prompts = [
        (domain, prompt, rest)
        for domain in opened.corpus.domains
        for prompt, rest in islice(_prompts(opened, domain), count)
    ]
    samples = []
    progress.start("completions", len(prompts), 0)
    for done, (domain, prompt, rest) in enumerate(prompts, 1):
        stops = {opened.tokenizer.eos_token_id, _end(opened, domain)}
        continued = {"text": _text(opened, rest)}
        for name, pruned, memory in _conditions(opened, domain, memories is not None):
            continued[name] = _text(opened, _greedy(opened, prompt, pruned, memory, stops))
        samples.append({"domain": domain, "prompt": _text(opened, prompt), "continued": continued})
        progress.advance("completions", done, {})
    return {"samples": samples}


def _conditions(opened: OpenedRun, domain: str, with_memory: bool) -> Iterator[tuple[str, bool, str | None]]:
    yield "unpruned", False, None
    yield "backbone", True, None
    if not with_memory:
        return
    yield "matched", True, domain
    domains = opened.corpus.domains
    other = domains[(domains.index(domain) + 1) % len(domains)]
    if other != domain:
        yield f"wrong: {other}", True, other


def _end(opened: OpenedRun, domain: str) -> int | None:
    source = opened.recipe.sources[domain]
    size = vocab_size(opened.run.spec.config)
    return end_of_document(opened.tokenizer, source.end_of_document, f"domains.{domain}", vocab_size=size)[0]


def _prompts(opened: OpenedRun, domain: str) -> Iterator[tuple[list[int], list[int]]]:
    """The beginning of every held-out document that is long enough, and what follows."""
    end = _end(opened, domain)
    document: list[int] = []
    for token in map(int, opened.corpus.heldout[domain].tokens):
        if token != end:
            document.append(token)
        if token == end or len(document) == PROMPT + NEW:
            size = min(PROMPT, len(document) // 2)
            if size > 2:
                yield document[:size], document[size:]
            document = []


def _text(opened: OpenedRun, ids: list[int]) -> str:
    return str(opened.tokenizer.decode(ids, skip_special_tokens=True))


def _greedy(
    opened: OpenedRun, prompt: list[int], pruned: bool, memory: str | None, stops: set[int | None]
) -> list[int]:
    """The likeliest tokens after a prompt, up to one that ends the text."""
    student, gates = opened.student, opened.gates if pruned else None
    ids: Tensor = torch.tensor([prompt], device=opened.device)
    with torch.no_grad():
        for _ in range(NEW):
            last = student(ids, gates, memory)[:, -1]
            token = F.linear(last.to(student.head.dtype), student.head).argmax(-1, keepdim=True)
            if int(token) in stops:
                break
            ids = torch.cat([ids, token], dim=1)
    return ids[0, len(prompt) :].tolist()
