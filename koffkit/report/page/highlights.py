"""The few numbers at the top of the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..verdict import verdict_of
from .facts import PageFacts
from .tables import shown


@dataclass(frozen=True, kw_only=True)
class Highlight:
    """One number: what it is, and a few words below it."""

    value: str
    label: str
    detail: str


def highlights(facts: PageFacts) -> list[Highlight]:
    """At most five, of those that the facts hold."""
    return [*_removed(facts), *_recovered(facts), *_best(facts), *_perplexity(facts), *_break_even(facts)]


def _removed(facts: PageFacts) -> Iterator[Highlight]:
    left = facts.base_parameters - facts.removed_parameters
    yield Highlight(
        value=f"{facts.sparsity:.1%}",
        label="of the base is gone",
        detail=f"{left:,} of {facts.base_parameters:,} parameters stay",
    )


def _recovered(facts: PageFacts) -> Iterator[Highlight]:
    verdict, mean = verdict_of(facts.results), facts.results.get("mean", {})
    if verdict.recovered_mean is None:
        return
    kls = [shown("kl", mean[name]["kl"]) for name in ("backbone", "matched") if "kl" in mean.get(name, {})]
    yield Highlight(
        value=f"{verdict.recovered_mean:.1%}",
        label="of the loss recovered",
        detail=f"mean KL {' → '.join(kls)}" if len(kls) == 2 else "by the matched memories",
    )


def _best(facts: PageFacts) -> Iterator[Highlight]:
    verdict = verdict_of(facts.results)
    if verdict.matched_best is not None:
        yield Highlight(
            value=f"{verdict.matched_best} of {len(verdict.recovered)}",
            label="domains where the matched memory is best",
            detail="against every other memory",
        )


def _perplexity(facts: PageFacts) -> Iterator[Highlight]:
    mean = facts.results.get("mean", {})
    names = [name for name in ("unpruned", "backbone", "matched") if "perplexity" in mean.get(name, {})]
    if len(names) < 2:
        return
    yield Highlight(
        value=shown("perplexity", mean[names[-1]]["perplexity"]),
        label="mean held-out perplexity",
        detail=", ".join(f"{name} {shown('perplexity', mean[name]['perplexity'])}" for name in names[:-1]),
    )


def _break_even(facts: PageFacts) -> Iterator[Highlight]:
    sizes = facts.sizes
    if sizes is None or sizes.break_even is None:
        return
    yield Highlight(
        value=str(sizes.break_even),
        label=f"{'memory fits' if sizes.break_even == 1 else 'memories fit'} into the saved bytes",
        detail=f"there {'is' if len(sizes.memories) == 1 else 'are'} {len(sizes.memories)}",
    )
