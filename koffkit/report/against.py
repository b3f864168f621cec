"""Figures of memories beside those of something else that could be loaded, on the same text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

FIGURES = ("kl", "perplexity")
BASELINE = "baseline"
"""In the results of a run: `name` of another one whose figures stand there, too, `parameters` that it loads
(None: not known), and those of this run, `own_parameters`."""
Figures = Mapping[str, Any]


def served(of_domain: Figures) -> Figures:
    """The figures of what a user would load: the matched memory, or the backbone where there is none."""
    figures: Figures = of_domain.get("matched") or of_domain["backbone"]
    return figures


def against(ours: Mapping[str, Figures], theirs: Mapping[str, Figures]) -> dict[str, Any]:
    """Compare domain by domain.

    Args:
        ours, theirs: by the same domains `kl` and `perplexity`; None: beyond the range of a float.

    Returns:
        `domains` (how many) and, of each figure that all domains have on both sides, in how many ours is
        `lower`, whether ours is `worse` in the mean, and the means apart: of `kl` their `difference` in nats
        per token, ours less theirs, of `perplexity` their `ratio`, the geometric mean over the domains. None:
        beyond the range of a float.
    """
    found: dict[str, Any] = {"domains": len(ours)}
    for figure in FIGURES:
        if all(figure in side[domain] for side in (ours, theirs) for domain in ours):
            pairs = [(_number(ours[domain][figure]), _number(theirs[domain][figure])) for domain in ours]
            found[figure] = _compared(pairs, figure)
    return found


def _compared(pairs: list[tuple[float, float]], figure: str) -> dict[str, Any]:
    logarithmic = figure == "perplexity"  # its mean is geometric
    ours, theirs = (fmean(map(math.log, side) if logarithmic else side) for side in zip(*pairs, strict=True))
    apart: float | None = ours - theirs if math.isfinite(ours - theirs) else None
    found = {"lower": sum(our < their for our, their in pairs), "worse": ours > theirs}
    if logarithmic:
        return found | {"ratio": None if apart is None else math.exp(apart)}
    return found | {"difference": apart}


def _number(value: float | None) -> float:
    return math.inf if value is None else float(value)


def in_words(found: Mapping[str, Any]) -> str:
    """`lower KL in 5 of 6 domains (mean difference -0.0123), lower perplexity in ...`."""
    count, parts = found["domains"], []
    if "kl" in found:
        part, apart = found["kl"], _signed(found["kl"]["difference"], "+.4f")
        parts.append(
            f"lower KL in {part['lower']} of {count} {'domain' if count == 1 else 'domains'} "
            f"(mean difference {apart})"
        )
    if "perplexity" in found:
        part, ratio = found["perplexity"], found["perplexity"]["ratio"]
        apart = _signed(None if ratio is None else ratio - 1, "+.1%")
        parts.append(f"lower perplexity in {part['lower']} (mean difference {apart})")
    return ", ".join(parts)


def _signed(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)


def against_baseline(results: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What a verdict says about the other run that the results hold, and what it warns of.

    Args:
        results: of a run, with `BASELINE` and, of every domain, the figures under `baseline_key`; without it
            nothing is said.
    """
    given = results.get(BASELINE)
    if given is None:
        return [], []
    key = baseline_key(given["name"])
    domains: Mapping[str, Figures] = results["domains"]
    found = against(
        {domain: served(figures) for domain, figures in domains.items()},
        {domain: figures[key] for domain, figures in domains.items()},
    )
    loaded = loaded_in_words(given["parameters"], given["own_parameters"])
    line = f"Against {given['name']}{loaded}: {in_words(found)}."
    if not found.get("kl", {}).get("worse"):
        return [line], []
    warning = (
        f"this run loses to {given['name']}: its mean KL is higher. Load that one instead, or give the "
        "memories more bytes, more steps or other parts, and compare again."
    )
    return [line], [warning]


def baseline_key(name: str) -> str:
    """Under which the figures of another run stand beside those of this run's conditions."""
    return f"{BASELINE} {name}"


def loaded_in_words(parameters: int | None, own: int | None) -> str:
    """How many parameters a baseline loads, and this run or row; None: not known."""
    if parameters is None:
        return ""
    return f" ({parameters:,} parameters loaded{'' if own is None else f', here {own:,}'})"
