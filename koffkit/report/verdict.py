"""What a run has won, in plain words, and what its figures warn of.

Everything is judged by KL to the unpruned model, in nats per token on held-out text. Works on the results of
stages as they stand in `run.json`; what a run did not measure is not spoken of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from .against import against_baseline
from .gates import gates_warning

ENOUGH_TOKENS = 2000
"""Held-out tokens of a domain, below which its figures say little."""
LEAST_ACCURACY = 0.8
"""Share of texts that a router must be right about."""
MOVED = 0.5
"""Share of the mean loss that memories must win back before we say that knowledge was moved into them."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was won.

    Args:
        lines: what is known, one sentence or two each.
        warnings: what the reader must know before using the result, with a remedy each.
        recovered: by domain, the share of its loss that its memory wins back (negative: it adds to the loss);
            None: nothing was lost, or a figure is infinite.
        recovered_mean: the same of the mean loss.
        matched_best: in how many domains the matched memory beats every other; None: they were not compared.
        harmed: domains in which the matched memory is no better than none.
    """

    lines: Sequence[str]
    warnings: Sequence[str]
    recovered: Mapping[str, float | None]
    recovered_mean: float | None
    matched_best: int | None
    harmed: Sequence[str]

    @property
    def moved(self) -> bool | None:
        """Whether the figures show that each domain's knowledge is now in its memory; None: not measured."""
        if not self.recovered:
            return None
        won = self.recovered_mean is not None and self.recovered_mean >= MOVED
        specific = self.matched_best is None or self.matched_best == len(self.recovered)
        return won and specific and not self.harmed

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints as `verdict`."""
        return {
            "lines": list(self.lines),
            "warnings": list(self.warnings),
            "recovered": dict(self.recovered),
            "recovered_mean": self.recovered_mean,
            "matched_best": self.matched_best,
            "harmed": list(self.harmed),
        }

    def markdown(self) -> str:
        """For a model card: one paragraph a line or warning; empty where nothing is known."""
        return "".join(
            [f"{line}\n\n" for line in self.lines]
            + [f"> **Warning:** {warning}\n\n" for warning in self.warnings]
        )


@dataclass(frozen=True, kw_only=True)
class _Losses:
    """KLs of one domain; `matched` and `wrong` (every other memory) as far as they were measured."""

    unpruned: float
    backbone: float
    matched: float | None
    wrong: tuple[float, ...]

    @property
    def harmed(self) -> bool:
        return self.matched is not None and not self.matched < self.backbone

    @property
    def best(self) -> bool:
        return self.matched is not None and all(self.matched < wrong for wrong in self.wrong)


def verdict_of(results: Mapping[str, Any], routing: Mapping[str, Any] | None = None) -> Verdict:
    """Judge the results of a run.

    Args:
        results: figures by stage, as `results` of `run.json`; any part may be missing. They may hold another
            run's beside them; see `against_baseline`.
        routing: of an added memory, how well the router knows it: `recognised` and `mistaken`.
    """
    domains = results.get("domains", {})
    losses = {name: part for name, figures in domains.items() if (part := _losses(figures)) is not None}
    matched = {name: part for name, part in losses.items() if part.matched is not None}
    compared = [part for part in matched.values() if part.wrong]
    harmed = [name for name, part in matched.items() if part.harmed]
    against, lost = against_baseline(results)
    warnings = [
        _harm_warning(matched, harmed),
        *lost,
        _text_warning(domains),
        _router_warning(results.get("router")),
        _routing_warning(routing),
        gates_warning(results.get("gates")),
    ]
    return Verdict(
        lines=[*_lines(losses, matched, compared), *against, *_kept(results.get("retention", {}))],
        warnings=[warning for warning in warnings if warning],
        recovered={name: _share([part]) for name, part in matched.items()},
        recovered_mean=_share(list(matched.values())),
        matched_best=sum(part.best for part in compared) if compared else None,
        harmed=harmed,
    )


def _losses(figures: Mapping[str, Any]) -> _Losses | None:
    """The KLs of a domain; None where they were not measured."""
    unpruned, backbone = _kl(figures.get("unpruned")), _kl(figures.get("backbone"))
    if unpruned is None or backbone is None:
        return None
    others = [_kl(other) for other in figures.get("swap", {}).values()]
    return _Losses(
        unpruned=unpruned,
        backbone=backbone,
        matched=_kl(figures.get("matched")),
        wrong=tuple(kl for kl in others if kl is not None),
    )


def _kl(figures: Any) -> float | None:
    """The KL of a condition, or None if it is not there. A JSON null is a value beyond a float's range."""
    if not isinstance(figures, Mapping) or not isinstance(figures.get("kl", ""), int | float | None):
        return None
    return math.inf if figures["kl"] is None else float(figures["kl"])


def _share(losses: Sequence[_Losses]) -> float | None:
    """(backbone - matched) / (backbone - unpruned) of the mean KLs."""
    if not losses:
        return None
    unpruned, backbone, matched = (
        fmean(part.unpruned for part in losses),
        fmean(part.backbone for part in losses),
        fmean(math.inf if part.matched is None else part.matched for part in losses),
    )
    lost = backbone - unpruned
    share = (backbone - matched) / lost if lost > 0 else math.nan
    return share if math.isfinite(share) and math.isfinite(lost) else None


def _lines(
    losses: Mapping[str, _Losses], matched: Mapping[str, _Losses], compared: Sequence[_Losses]
) -> list[str]:
    if not losses:
        return []
    if not matched:
        cost = _number(fmean(part.backbone for part in losses.values()))
        return [f"Pruning costs {cost} nats per token (mean KL to the unpruned model); no memory was scored."]
    parts = list(matched.values())
    lines = [_won(parts)]
    if len(matched) > 1:
        shares = ", ".join(f"{name} {_percent(_share([part]))}" for name, part in matched.items())
        lines.append(f"Loss recovered, domain by domain: {shares}.")
    if compared:
        wrong = _number(fmean(fmean(part.wrong) for part in compared))
        best = sum(part.best for part in compared)
        rank = f"the matched one is the best in {best} of {_domains(len(compared))}"
        if len(compared) == 1:
            rank = f"the matched one is {'better than' if best else 'not the best of'} all"
        lines.append(f"With a wrong memory the mean KL is {wrong}; {rank}.")
    return lines


def _kept(retention: Mapping[str, Any]) -> list[str]:
    """What is left of general text; empty where it was not measured."""
    backbone = _kl(retention.get("backbone"))
    if backbone is None:
        return []
    said = f"On held-out retention text the bare backbone's KL to the unpruned model is {_number(backbone)}"
    memories = [kl for figures in retention.get("memories", {}).values() if (kl := _kl(figures)) is not None]
    if memories:
        said += f", with a memory {_number(fmean(memories))} in the mean"
    routed = _kl(retention.get("auto"))
    return [said + (f", with the routed one {_number(routed)}." if routed is not None else ".")]


def _won(parts: Sequence[_Losses]) -> str:
    """Matched against bare backbone, in the mean over the domains."""
    bare = _number(fmean(part.backbone for part in parts))
    with_memory = _number(fmean(part.matched for part in parts if part.matched is not None))
    share, one = _share(parts), len(parts) == 1
    memories, recover = ("memory", "recovers") if one else ("memories", "recover")
    figures = (
        f"{'' if one else 'mean '}KL to the unpruned model {bare} without memory, {with_memory} with the "
        "matched one"
    )
    if share is None:
        return f"What the {memories} {recover} cannot be stated as a share: {figures}."
    if share <= 0:
        return f"The {memories} {recover} nothing of the loss: {figures}."
    return f"The {memories} {recover} {share:.1%} of the loss: {figures}."


def _harm_warning(matched: Mapping[str, _Losses], harmed: Sequence[str]) -> str | None:
    if not harmed:
        return None
    named = ", ".join(
        f"{name} (KL {_number(matched[name].matched)} with it, {_number(matched[name].backbone)} without)"
        for name in harmed
    )
    return (
        f"a memory does harm, or no good, in {len(harmed)} of {_domains(len(matched))}: {named}. Use the "
        "backbone alone there, or learn again with lower rates or more steps."
    )


def _text_warning(domains: Mapping[str, Any]) -> str | None:
    tiny = {
        name: figures["tokens"]
        for name, figures in domains.items()
        if isinstance(figures.get("tokens"), int) and figures["tokens"] < ENOUGH_TOKENS
    }
    if not tiny:
        return None
    named = ", ".join(f"{name} {count:,}" for name, count in tiny.items())
    return (
        f"the held-out text is tiny (tokens: {named}; fewer than {ENOUGH_TOKENS:,}), so these figures say "
        "little. Hold out more (holdout, stages.evaluate.max_tokens), or give more text."
    )


def _router_warning(router: Mapping[str, Any] | None) -> str | None:
    if router is None or router["accuracy"] >= LEAST_ACCURACY:
        return None
    return (
        f"the router errs often: it is right on {router['accuracy']:.1%} of {router['documents']:,} held-out "
        f"texts (below {LEAST_ACCURACY:.0%}). Name the memory instead of --memory auto, or give the router "
        "more text or another kind."
    )


def _routing_warning(routing: Mapping[str, Any] | None) -> str | None:
    if routing is None:
        return None
    recognised, mistaken = routing["recognised"], routing["mistaken"]
    if min(recognised, 1 - mistaken) >= LEAST_ACCURACY:
        return None
    return (
        f"the router errs often: it picks this memory for {recognised:.1%} of the domain's own held-out "
        f"documents and {mistaken:.1%} of others. Name the memory instead of --memory auto, or give more "
        "text (--against for what it must not take for this domain)."
    )


def _number(value: float | None) -> str:
    return "infinite" if value is None or math.isinf(value) else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"


def _domains(count: int) -> str:
    return f"{count} domain" if count == 1 else f"{count} domains"
