"""What a run will cost: the time of every stage, memory and disk, from a measured machine or from real steps
(`koffkit compress --dry-run --probe N`), to be held against what it did cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..arch.weights import vocab_size
from ..checkpoint.gguf import cache_folder
from ..checkpoint.spec import ModelSpec
from ..errors import UsageError
from ..recipe.schema import Recipe
from ..recipe.training import Training
from ..storage.files import make_folder, write_json
from .estimates import asked_tokens
from .machine import Machine, machine_key
from .neurons import choice_learned
from .peak import held_by_heap
from .plan import Plan
from .work import (
    FLOAT,
    STUDENT_LOGITS,
    Work,
    cache_bytes_a_token,
    forward_work,
    once,
    step_work,
    trained_backbone,
)

TOKEN_BYTES = 4
CHECKPOINTS, MOMENTS = 2, 2
Tokens = Mapping[str, int | None]
"""Training tokens that there are, by domain and `retention`."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run is expected to cost.

    Args:
        basis: what the figures are from: real steps, or the machine's measured speed.
        seconds: by stage; None where the text decides.
        peak_memory: bytes. disk: bytes in the run folder at its fullest, a teacher cache included.
    """

    basis: Literal["probe", "machine"]
    seconds: dict[str, float | None]
    peak_memory: int
    disk: int


def forecast_of(recipe: Recipe, spec: ModelSpec, plan: Plan, machine: Machine, tokens: Tokens) -> Forecast:
    """From the machine's measured speed.

    Args:
        recipe: the recipe. spec: its base. plan: its plan. machine: this one. tokens: of the text.
    """
    dtype = "bfloat16" if recipe.train.precision == "bf16" else recipe.base.dtype
    known, seconds = 0.0, dict[str, float | None]()
    for stage in recipe.stages:
        if isinstance(stage.options, Training):
            share, known = cached_share(recipe, stage.options, tokens, known)
            ways = (step_work(recipe, spec, stage.options, cached=cached) for cached in (False, True))
            new, again = (machine.seconds(work, dtype) for work in ways)
            seconds[stage.name] = stage.options.max_steps * ((1 - share) * new + share * again)
        elif stage.name == "evaluate":
            seconds[stage.name] = _evaluating(recipe, spec, stage.options, machine, tokens)
        elif stage.name == "restore" and (learned := choice_learned(recipe)) is not None:
            seconds[stage.name] = _choosing(recipe, spec, stage.options, learned, machine, dtype)
        else:
            seconds[stage.name] = None
    return Forecast(
        basis="machine",
        seconds=seconds,
        peak_memory=plan.peak_memory_bytes + (0 if machine.at_once else held_by_heap(recipe, spec)),
        disk=disk_bytes(recipe, spec, plan, tokens),
    )


def _choosing(
    recipe: Recipe, spec: ModelSpec, options: Any, learned: Training, machine: Machine, dtype: str
) -> float:
    """Of the steps, and of the passes before them for the first scores, which need no teacher."""
    new, again = (
        machine.seconds(step_work(once(recipe), spec, learned, cached=way), dtype) for way in (False, True)
    )
    passes: int = options.batches * len(recipe.domain_names)
    return learned.max_steps * new + passes * again


def cached_share(recipe: Recipe, options: Training, tokens: Tokens, known: float) -> tuple[float, float]:
    """The share of a stage's sequences that a teacher cache has already, and the tokens that it has after it.

    Args:
        recipe: the recipe. options: of the stage. tokens: of the text. known: tokens in the cache before.
    """
    read = float(options.max_steps * options.batch_size * recipe.sequence_length)
    read *= recipe.train.gradient_accumulation
    there = [tokens.get(name) for name in asked_tokens(recipe)]
    if not recipe.distill.cache or not read:
        return 0.0, known
    whole = sum(count or 0 for count in there) if all(there) else read + known
    missing = max(0.0, whole - known)
    new = missing if read >= whole else read * missing / whole
    return 1 - new / read, known + new


def disk_bytes(recipe: Recipe, spec: ModelSpec, plan: Plan, tokens: Tokens) -> int:
    """Token files, two checkpoints, memories, and the teacher cache."""
    learned = FLOAT * (trained_backbone(recipe, spec) + plan.memory_params_training * len(plan.domains))
    there = sum(count or 0 for count in tokens.values()) / (1 - recipe.holdout)
    asked = asked_tokens(recipe)
    cached = sum(min(count, tokens.get(name) or count) for name, count in asked.items())
    cache = cache_bytes_a_token(recipe, spec) * cached
    return round(learned * (1 + CHECKPOINTS * (1 + MOMENTS)) + TOKEN_BYTES * there + cache)


def _evaluating(
    recipe: Recipe, spec: ModelSpec, options: Any, machine: Machine, tokens: Tokens
) -> float | None:
    """Likelihoods alone; recall of facts comes on top."""
    most, share = getattr(options, "max_tokens", None), recipe.holdout / (1 - recipe.holdout)
    held = {name: round((count or 0) * share) for name, count in tokens.items() if name != "retention"}
    if not held or not all(held.values()):
        return None
    domains = len(recipe.domain_names)
    memories = 0 if not recipe.memory.is_on else domains if getattr(options, "swap", False) else 1
    total = sum(min(count, most or count) for count in held.values()) * (2 + memories)
    batch = getattr(options, "batch_size", 1) * recipe.sequence_length
    work = forward_work(recipe, spec, batch)
    logits = batch * vocab_size(spec.config) * STUDENT_LOGITS * FLOAT
    more = Work(operations=work.operations, bytes=work.bytes + logits, calls=work.calls)
    dtype = "bfloat16" if recipe.train.precision == "bf16" else recipe.base.dtype
    return total / batch * machine.seconds(more, dtype)


def keep_probe(recipe: Recipe, device: Mapping[str, Any], forecast: Forecast) -> None:
    """Remember what real steps said, for the run that follows."""
    path = _probe_file(recipe, device)
    try:
        make_folder(path.parent)
        write_json(path, asdict(forecast))
    except (OSError, UsageError):  # a home that cannot be written to
        pass


def known_probe(recipe: Recipe, device: Mapping[str, Any]) -> Forecast | None:
    """What real steps of this recipe said on this machine; None if none were made."""
    try:
        return Forecast(**json.loads(_probe_file(recipe, device).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _probe_file(recipe: Recipe, device: Mapping[str, Any]) -> Path:
    of = json.dumps([recipe.model_dump(mode="json"), machine_key(dict(device))], sort_keys=True)
    return cache_folder() / "probes" / f"{hashlib.sha256(of.encode()).hexdigest()[:24]}.json"
