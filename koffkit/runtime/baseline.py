"""Another run beside the one that a report is about: its figures, if they were measured on the same text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from ..checkpoint.spec import ModelSpec
from ..errors import KoffkitError, UsageError
from ..planning.plan import Plan, make_plan
from ..recipe.schema import Recipe
from ..report.against import BASELINE, baseline_key, served
from ..run.folder import RunFolder
from ..run.state import RunState

HOW_TEXT_IS_READ = ("sequence_length", "begin_sequences", "attend_across_documents")
"""Fields of a recipe that figures on the same held-out text depend on."""


def plan_of_run(state: RunState) -> Plan | None:
    """The plan of a run's recipe; None if this koffkit does not read it as a whole recipe."""
    try:
        return make_plan(Recipe.model_validate(state.recipe), ModelSpec(config=state.base.config))
    except (ValidationError, KoffkitError):
        return None


def with_baseline(run: RunFolder, other: RunFolder) -> dict[str, Any]:
    """The results of a run with the figures of another one's served models beside its conditions.

    Args:
        run: the run.
        other: another one, finished, on the same base and text.

    Raises:
        UsageError: it is no such run.
    """
    state, found = run.read(), other.read()
    reason = next(_differences(run, state, other, found), None)
    if reason is not None:
        raise UsageError(
            f"--baseline {other.path}: {reason}. Name a finished run on the same base, domains and held-out "
            "text, for example row prune_less of an ablation with the same seed."
        )
    name = other.path.resolve().name
    key, results, theirs = baseline_key(name), state.results, found.results
    sizes = {"parameters": _loaded(found), "own_parameters": _loaded(state)}
    return {
        **results,
        "domains": {
            domain: {**figures, key: served(theirs["domains"][domain])}
            for domain, figures in results["domains"].items()
        },
        "mean": {**results["mean"], key: served(theirs["mean"])},
        BASELINE: {"name": name, **sizes},
    }


def _loaded(state: RunState) -> int | None:
    """Parameters that are loaded to answer: the backbone and one memory; None: not known, as where memories
    were learned for a backbone that was there."""
    plan, budget = None if state.backbone is not None else plan_of_run(state), state.budget
    return None if plan is None else budget.base_params - budget.removed_params + plan.memory_params


def _differences(run: RunFolder, state: RunState, other: RunFolder, found: RunState) -> Iterator[str]:
    """Why figures of two runs cannot stand side by side; the first reason may make the next meaningless."""
    if other.path.resolve() == run.path.resolve():
        yield "this is the run itself"
    for folder, one in ((run, state), (other, found)):
        if "domains" not in one.results or not one.is_finished:
            yield f"{folder.path} has no figures of stage evaluate, or is not finished"
    if state.base.fingerprint != found.base.fingerprint:
        yield "its base is another one, and KL is the distance to the base"
    ours, theirs = state.results["domains"], found.results["domains"]
    if set(ours) != set(theirs):
        yield f"its domains are {', '.join(theirs)}, not {', '.join(ours)}"
    for field in HOW_TEXT_IS_READ:
        if state.recipe.get(field) != found.recipe.get(field):
            yield f"{field} is {found.recipe.get(field)} there and {state.recipe.get(field)} here"
    for domain in ours:
        if not run.same_heldout(domain, state, found):
            yield f"its held-out text of {domain} is not the same"
        if ours[domain].get("tokens") != theirs[domain].get("tokens"):
            yield (
                f"{theirs[domain].get('tokens')} held-out tokens of {domain} were scored there and "
                f"{ours[domain].get('tokens')} here"
            )
