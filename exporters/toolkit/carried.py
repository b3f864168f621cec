"""Refusing, before anything is written, what a format cannot carry."""

from __future__ import annotations

from ...arch.widths import SLICED_LAYERS
from ...artefact.routes import Carries, Facts, has_window, kv_facts, width_facts
from ...errors import UsageError
from ...masks.slicing import widths_of
from ...run.finished import FinishedRun


def facts_of_run(run: FinishedRun, *, merged: bool = False) -> Facts:
    """What the backbone and the memories of a run will be like.

    Args:
        run: the run.
        merged: one memory becomes part of the weights, and none ships beside them.
    """
    config, memory, layers = run.sliced_config, run.recipe["memory"], run.state.memory_layers
    own = SLICED_LAYERS in config
    on = bool(run.memories) and not merged
    kv = kv_facts(run.spec.num_layers, [len(layers)] if on and memory["kv"] is not None else [])
    return Facts(
        family=run.spec.arch.model_type if own else str(config["model_type"]),
        own_class=own,
        sliding=has_window(config),
        ranks=frozenset([memory["lora"]["rank"]] if on and memory["lora"] is not None else []),
        kv=kv,
        neurons=on and memory.get("neurons") is not None,
        **width_facts(widths_of(run.spec, run.masks), run.spec.shape),
    )


def require_carried(carries: Carries, run: FinishedRun, name: str, *, merged: bool = False) -> Facts:
    """Refuse a run that a format cannot carry.

    Args:
        carries: the exporter's declaration.
        run: the run.
        name: of the format.
        merged: one memory becomes part of the weights, and none ships beside them.

    Returns:
        what the run is like.

    Raises:
        UsageError: with everything that is in the way.
    """
    facts = facts_of_run(run, merged=merged)
    obstacles = carries.obstacles(facts)
    if obstacles:
        raise UsageError(f"{run.path}: format {name}: {'; also: '.join(obstacles)}.")
    return facts
