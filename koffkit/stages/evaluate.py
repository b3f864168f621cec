"""Stage `evaluate`: figures per domain and condition. The swap matrix is the set of all (domain, memory)
pairs.

Legend: B batch, T tokens, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.recall import Fact, load_facts, recall, spread
from ..errors import DataError, Interrupted
from ..method.likelihood import TokenSums, add_tokens, geometric_mean, projected
from ..recipe.load import LoadedRecipe
from ..recipe.schema import Evaluate
from ..training.checkpoint import Checkpoint
from ..training.context import Context, stage_options

Condition = tuple[str, bool, str | None]  # name, pruned, memory


def evaluate_domains(context: Context, options: Evaluate) -> dict[str, Any]:
    """`{"domains": {domain: {"unpruned"|"backbone"|"matched": figures, "swap": {other: figures}}}, "mean":
    {...}}`.

    Figures: `perplexity`, `kl` (nats per token, to the unpruned model), and `recall` for sources of facts;
    None for what is beyond the range of a float.
    """
    context.student.eval()  # no dropout and no gradient checkpointing
    domains = context.corpus.domains
    results: dict[str, Any] = {}
    context.progress.start("evaluate", len(domains), 0)
    for done, domain in enumerate(domains, 1):
        if context.stop():
            raise Interrupted("interrupted in evaluate; continue with the same command and --resume.")
        results[domain] = _evaluate_domain(context, options, domain)
        context.progress.advance("evaluate", done, {})
    finite: dict[str, Any] = _without_infinities({"domains": results, "mean": _mean(results)})
    return finite


def check_facts(loaded: LoadedRecipe, tokenizer: Any) -> None:
    """Facts that recall cannot be told of are found before anything is learned.

    Raises:
        DataError: a record lacks a field, or no answer begins where a token does.
    """
    limit = next(
        (stage.evaluate.recall_limit for stage in loaded.recipe.stages if stage.evaluate is not None), 0
    )
    for domain, source in loaded.recipe.sources.items():
        if source.prompt_field is not None and limit != 0:
            load_facts(source, loaded.root, f"domains.{domain}", tokenizer, limit)


def _conditions(context: Context, options: Evaluate, domain: str) -> Iterator[Condition]:
    yield "unpruned", False, None
    yield "backbone", True, None
    memories = context.student.memories
    if memories is None or not memories.exist:
        return
    yield "matched", True, domain
    if options.swap:
        for other in context.corpus.domains:
            if other != domain:
                yield f"swap.{other}", True, other


@torch.no_grad()
def _evaluate_domain(context: Context, options: Evaluate, domain: str) -> dict[str, Any]:
    source = context.loaded.recipe.sources[domain]
    facts = None
    if source.prompt_field is not None:
        facts = load_facts(
            source, context.loaded.root, f"domains.{domain}", context.tokenizer, options.recall_limit
        )
    conditions = list(_conditions(context, options, domain))
    figures = _likelihood(context, options, domain, conditions)
    found: dict[str, Any] = {"swap": {}}
    for condition in conditions:
        name = condition[0]
        if facts is not None:
            limit = options.swap_recall_limit if name.startswith("swap.") else None
            figures[name]["recall"] = _recall(context, condition, spread(facts, limit))
        if name.startswith("swap."):
            found["swap"][name.removeprefix("swap.")] = figures[name]
        else:
            found[name] = figures[name]
    return found


def _hidden(context: Context, ids: Tensor, condition: Condition) -> Tensor:
    _, pruned, memory = condition
    with context.accelerator.autocast():
        hidden: Tensor = context.student(ids, context.masks, memory) if pruned else context.unpruned(ids)
    return hidden


def _likelihood(
    context: Context, options: Evaluate, domain: str, conditions: list[Condition]
) -> dict[str, dict[str, float]]:
    """Perplexity and KL of every condition on the held-out tokens; the teacher runs once a batch."""
    sums = {name: TokenSums() for name, _, _ in conditions}
    length, chunk = context.loaded.recipe.sequence_length, context.loaded.recipe.distill.chunk_tokens
    head = context.student.head
    for batch, counted in context.corpus.heldout[domain].sequences(
        length, options.batch_size, options.max_tokens
    ):
        ids = batch.to(context.accelerator.device)
        scored = (
            torch.ones_like(ids[:, 1:], dtype=torch.bool)
            if counted is None
            else counted[:, 1:].to(ids.device)
        )
        targets = ids[:, 1:][scored]
        teacher = projected(_hidden(context, ids, conditions[0])[:, :-1][scored], head)
        for condition in conditions:
            student = projected(_hidden(context, ids, condition)[:, :-1][scored], head)
            add_tokens(
                sums[condition[0]],
                len(targets),
                student,
                targets=targets,
                reference=teacher,
                chunk_tokens=chunk,
            )
    if not sums["unpruned"].tokens:
        raise DataError(
            f"domains.{domain}: no held-out token is the assistant's; hold out more (holdout), or use "
            "loss_on: all."
        )
    return {name: {"perplexity": part.perplexity, "kl": part.mean_kl} for name, part in sums.items()}


def _recall(context: Context, condition: Condition, facts: list[Fact]) -> float:
    head = context.student.head

    def predict(ids: Tensor) -> Tensor:
        hidden = _hidden(context, ids.to(context.accelerator.device), condition)
        return F.linear(hidden.to(head.dtype), head).argmax(-1)

    return fmean(recall(predict, facts))


def _mean(results: dict[str, Any]) -> dict[str, Any]:
    """Each condition over the domains: geometric mean of perplexity, arithmetic mean of the rest."""
    flat: dict[str, list[dict[str, float]]] = {}
    for figures in results.values():
        for name, values in figures.items():
            flat.setdefault(name, []).extend(values.values() if name == "swap" else [values])
    return {name: {key: _average(key, rows) for key in rows[0]} for name, rows in flat.items() if rows}


def _average(key: str, rows: list[dict[str, float]]) -> float:
    values = [row[key] for row in rows]
    return geometric_mean(values) if key == "perplexity" else fmean(values)


def _without_infinities(value: Any) -> Any:
    """JSON has no word for what is beyond the range of a float: null stands for it."""
    if isinstance(value, dict):
        return {key: _without_infinities(part) for key, part in value.items()}
    return value if not isinstance(value, float) or math.isfinite(value) else None


class EvaluateStage:
    """Perplexity, KL and recall per domain: unpruned, backbone alone, matched memory, every other memory."""

    name = "evaluate"

    def run(self, context: Context, resume: Checkpoint | None) -> None:
        context.results |= evaluate_domains(context, stage_options(context, self.name))
