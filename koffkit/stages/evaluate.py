"""Stage `evaluate`: figures per domain and condition. The swap matrix is the set of all (domain, memory)
pairs.

Legend: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ..errors import DataError, Interrupted
from ..progress import StepCounter
from ..recipe.sources import AutoDomains
from ..strict import Positive, StrictModel
from .scoring import UNPRUNED, Hidden, figures_of, likelihood, pruned, unpruned, without_infinities
from .stage import StageKind

if TYPE_CHECKING:
    from torch import Tensor

    from ..checkpoint.spec import ModelSpec
    from ..data.recall import Fact
    from ..recipe.load import LoadedRecipe
    from ..training.checkpoint import Checkpoint
    from ..training.context import Context
    from ..training.probe import Probe


class EvaluateOptions(StrictModel):
    """Perplexity, KL and recall of every domain, with and without its memory."""

    batch_size: Positive = Field(8, description="Sequences at a time.")
    max_tokens: Positive | None = Field(None, description="Held-out tokens per domain; by default all.")
    swap: bool = Field(True, description="Also evaluate every memory on every other domain.")
    recall_limit: Positive | None = Field(
        None, description="Facts per domain, at even distances; by default all."
    )
    swap_recall_limit: Positive | None = Field(
        None, description="Facts per domain for the memories of other domains; else recall_limit."
    )


def evaluate_domains(context: Context, options: EvaluateOptions) -> dict[str, Any]:
    """Evaluate every domain under every condition.

    Args:
        context: with the masks settled.
        options: of the stage.

    Returns:
        `{"domains": {domain: {"tokens": how many were scored, "unpruned"|"backbone"|"matched": figures,
        "swap": {other: figures}}}, "mean": {...}}`.

    Figures: `perplexity`, `kl` (nats per token, to the unpruned model), and `recall` for sources of facts;
    None for what is beyond the range of a float.
    """
    context.student.eval()  # no dropout and no gradient checkpointing
    domains = context.corpus.domains
    steps = sum(_num_steps(context, options, domain) for domain in domains)
    step = StepCounter(context.progress, "evaluate", steps)

    def step_done() -> None:
        if context.stop():
            raise Interrupted("interrupted in evaluate; continue with the same command and --resume.")
        step()

    results = {domain: _evaluate_domain(context, options, domain, step_done) for domain in domains}
    finite: dict[str, Any] = without_infinities({"domains": results, "mean": _mean(results)})
    return finite


def conditions_of(context: Context, options: EvaluateOptions, domain: str) -> Iterator[tuple[str, Hidden]]:
    """What a domain is measured under, by name."""
    yield UNPRUNED, unpruned(context)
    yield "backbone", pruned(context, None)
    memories = context.student.memories
    if memories is None or not memories.exist:
        return
    yield "matched", pruned(context, domain)
    if options.swap:
        for other in context.corpus.domains:
            if other != domain:
                yield f"swap.{other}", pruned(context, other)


def _num_steps(context: Context, options: EvaluateOptions, domain: str) -> int:
    """Calls of `step_done` for a domain: one for every condition of a batch, and of recall."""
    sequences = context.corpus.heldout[domain].sequences(
        context.loaded.recipe.sequence_length, options.batch_size, options.max_tokens
    )
    recall = context.loaded.recipe.sources[domain].prompt_field is not None
    return len(list(conditions_of(context, options, domain))) * (sum(1 for _ in sequences) + recall)


def _evaluate_domain(
    context: Context, options: EvaluateOptions, domain: str, step_done: Callable[[], None]
) -> dict[str, Any]:
    import torch

    with torch.no_grad():
        return _figures(context, options, domain, step_done)


def _figures(
    context: Context, options: EvaluateOptions, domain: str, step_done: Callable[[], None]
) -> dict[str, Any]:
    from ..data.recall import subsample

    facts = facts_of(context, options, domain)
    conditions = dict(conditions_of(context, options, domain))
    heldout = context.corpus.heldout[domain]
    sums = likelihood(context, heldout, conditions, options.batch_size, options.max_tokens, step_done)
    if not sums[UNPRUNED].tokens:
        raise DataError(
            f"domains.{domain}: no held-out token is the assistant's; hold out more (holdout), or use "
            "loss_on: all."
        )
    figures = {name: figures_of(part) for name, part in sums.items()}
    result: dict[str, Any] = {"tokens": sums[UNPRUNED].tokens, "swap": {}}
    for name, hidden in conditions.items():
        if facts is not None:
            limit = options.swap_recall_limit if name.startswith("swap.") else None
            figures[name]["recall"] = recall_of(context, hidden, subsample(facts, limit))
            step_done()
        if name.startswith("swap."):
            result["swap"][name.removeprefix("swap.")] = figures[name]
        else:
            result[name] = figures[name]
    return result


def facts_of(context: Context, options: EvaluateOptions, domain: str) -> list[Fact] | None:
    """The facts of a domain; None if its text has none."""
    from ..arch.weights import vocab_size
    from ..data.recall import load_facts

    source = context.loaded.recipe.sources[domain]
    if source.prompt_field is None:
        return None
    return load_facts(
        source,
        context.loaded.root,
        f"domains.{domain}",
        context.tokenizer,
        options.recall_limit,
        vocab_size=vocab_size(context.student.spec.config),
    )


def recall_of(context: Context, hidden: Hidden, facts: list[Fact]) -> float:
    """The share of facts that a condition knows."""
    from torch.nn import functional as F

    from ..data.recall import recall
    from ..model.batch import Batch

    head = context.student.head

    def predict(ids: Tensor) -> Tensor:
        states = hidden(Batch(ids.to(context.accelerator.device)))
        return F.linear(states.to(head.dtype), head).argmax(-1)

    return fmean(recall(predict, facts))


def _mean(results: dict[str, Any]) -> dict[str, Any]:
    """The mean of each condition over the domains: geometric for perplexity, arithmetic for the rest."""
    flat: dict[str, list[dict[str, float]]] = {}
    for figures in results.values():
        for name, values in figures.items():
            if name == "tokens":
                continue
            flat.setdefault(name, []).extend(values.values() if name == "swap" else [values])
    return {name: {key: _average(key, rows) for key in rows[0]} for name, rows in flat.items() if rows}


def _average(key: str, rows: list[dict[str, float]]) -> float:
    from ..method.likelihood import geometric_mean

    values = [row[key] for row in rows]
    return geometric_mean(values) if key == "perplexity" else fmean(values)


class Evaluate(StageKind):
    """Perplexity, KL and recall per domain: unpruned, backbone alone, matched memory, every other memory; and
    what is kept of general text."""

    name = "evaluate"
    options = EvaluateOptions
    after = ("learn_masks", "recover", "route")

    def check(self, options: EvaluateOptions, loaded: LoadedRecipe, base: ModelSpec) -> None:
        """Refuse facts whose recall cannot be measured.

        Raises:
            DataError: a record lacks a field, no answer begins at a token boundary, or the model does not
                know a token.
        """
        from ..arch.weights import vocab_size
        from ..checkpoint.files import load_tokenizer
        from ..data.recall import load_facts

        if isinstance(loaded.recipe.domains, AutoDomains):
            return  # plain documents
        facts = {name: source for name, source in loaded.recipe.domains.items() if source.prompt_field}
        if not facts:
            return
        trusted = loaded.recipe.base.trust_remote_code
        tokenizer = load_tokenizer(base.folder, trust_remote_code=trusted)
        for domain, source in facts.items():
            load_facts(
                source,
                loaded.root,
                f"domains.{domain}",
                tokenizer,
                options.recall_limit,
                vocab_size=vocab_size(base.config),
            )

    def probe(self, context: Context, options: EvaluateOptions, probe: Probe) -> float:
        from .evaluate_probe import probe_evaluate

        return probe_evaluate(context, options)

    def run(self, context: Context, options: EvaluateOptions, resume: Checkpoint | None) -> None:
        import torch

        from .retained import evaluate_retention

        context.results |= evaluate_domains(context, options)
        with torch.no_grad():
            kept = evaluate_retention(context, options.batch_size, options.max_tokens)
        if kept:
            context.results["retention"] = kept
