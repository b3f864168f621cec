"""The paper's analyses of a run: which neurons were pruned, and how near the bare backbone is to the base."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..masks.file import load_scores
from ..model.batch import Batch
from ..progress import Progress
from ..run.finished import FinishedRun
from .lape import lape, pruned_by_specificity, rank_correlation
from .opened import OpenedRun, open_run
from .similarity import centroid_cosine, knn_overlap, linear_cka

NEURON, GATE = "mlp_neuron", "mlp.gate_proj"
FIRING_TOKENS = 20_000
"""Of each domain, to see how often neurons fire."""
TEXTS = 200
"""Held-out sequences of each domain whose representations are compared."""
NEIGHBOURS = 10
BATCH = 8


def analyse(run: FinishedRun, progress: Progress, *, device: str | None = None) -> dict[str, Any]:
    """Analyse a run.

    Args:
        run: finished, with its base.
        progress: where to report.
        device: kind of device; None: the accelerator of the machine, or the CPU.

    Returns:
        `lape`, if neurons were pruned, and `representation`.

    Raises:
        UsageError: the recipe is of another version of koffkit.
        DataError: the tokens that the run learned from are gone.
    """
    opened = open_run(run, progress, device=device)
    found: dict[str, Any] = {}
    with torch.no_grad():
        if NEURON in opened.gates and GATE in run.spec.arch.modules:
            found["lape"] = _specificity(opened, progress)
        found["representation"] = _representation(opened, progress)
    return found


def _specificity(opened: OpenedRun, progress: Progress) -> dict[str, Any]:
    """LAPE of the unpruned model on training text, against the mask."""
    progress.start("LAPE", len(opened.corpus.domains), 0)
    firing = {}
    for done, domain in enumerate(opened.corpus.domains, 1):
        firing[domain] = _firing(opened, domain)
        progress.advance("LAPE", done, {})
    entropy, gates = lape(firing), opened.gates[NEURON].cpu()
    found = pruned_by_specificity(entropy, gates == 0)
    scores = load_scores(opened.run.folder.scores_file, opened.run.spec)
    if NEURON in scores:
        found["score_correlation"] = rank_correlation(scores[NEURON], entropy)
    return found


def _firing(opened: OpenedRun, domain: str) -> Tensor:
    """How often each neuron fires on a domain: its gate's input is positive, so that silu and gelu are; [L,
    U], a share of tokens."""
    spec, model = opened.run.spec, opened.student.model
    counts = torch.zeros(spec.shape.num_layers, spec.shape.intermediate, device=opened.device)
    gates = [model.get_submodule(spec.arch.layer(index) + GATE) for index in range(spec.shape.num_layers)]
    hooks = [gate.register_forward_hook(partial(_count, counts[i])) for i, gate in enumerate(gates)]
    tokens = 0
    try:
        for batch in _batches(opened, domain, "train", FIRING_TOKENS):
            opened.student(batch.ids, positions=batch.positions)
            tokens += batch.ids.numel()
    finally:
        for hook in hooks:
            hook.remove()
    return (counts / tokens).cpu()


def _count(counts: Tensor, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    counts += (output > 0).flatten(0, -2).sum(0)


def _batches(opened: OpenedRun, domain: str, part: str, tokens: int) -> Iterator[Batch]:
    stream = getattr(opened.corpus, part)[domain]
    for batch in stream.sequences(opened.recipe.sequence_length, BATCH, tokens):
        yield batch.to(opened.device)


def _representation(opened: OpenedRun, progress: Progress) -> dict[str, Any]:
    """CKA, kNN overlap and cosine of centroids after every layer, between base and bare backbone."""
    length, domains = opened.recipe.sequence_length, opened.corpus.domains
    states: dict[bool, list[Tensor]] = {False: [], True: []}
    labels: list[int] = []
    progress.start("representations", len(domains), 0)
    for done, domain in enumerate(domains, 1):
        if len(opened.corpus.heldout[domain].tokens):
            for batch in _batches(opened, domain, "heldout", TEXTS * length):
                labels += [done] * len(batch.ids)
                for pruned in states:
                    states[pruned].append(_mean_states(opened, batch.ids, opened.gates if pruned else None))
        progress.advance("representations", done, {})
    if len(labels) < 3:
        return {}
    base, bare = (torch.cat(states[pruned], dim=1) for pruned in (False, True))
    marks, near = torch.tensor(labels), min(NEIGHBOURS, len(labels) // 2)
    pairs = list(zip(base, bare, strict=True))
    return {
        "texts": len(labels),
        "neighbours": near,
        "cka": [linear_cka(*pair) for pair in pairs],
        "knn_overlap": [knn_overlap(*pair, near) for pair in pairs],
        "centroid_cosine": [centroid_cosine(*pair, marks) for pair in pairs],
    }


def _mean_states(opened: OpenedRun, ids: Tensor, gates: dict[str, Tensor] | None) -> Tensor:
    """Mean hidden states over each text, [L + 1, B, D]."""
    states = opened.student.every_hidden_state(ids, gates)
    return torch.stack([state.float().mean(1) for state in states]).cpu()
