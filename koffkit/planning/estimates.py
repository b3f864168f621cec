"""What a plan estimates beside its exact counts: the time of every stage, and bytes with a number of
memories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..recipe.schema import Recipe
from ..recipe.training import Training
from .neurons import choice_learned

# Floating-point operations per second that training may reach: from two laptop cores to one large GPU at half
# its peak.
THROUGHPUT = {"2 CPU cores": (2e10, 1.5e11), "one data-centre GPU": (5e13, 4e14)}
ENCODER_PARAMS = 125_000_000
"""Of the encoders that routers are usually made of."""
NGRAM_SECONDS = 3e-4
"""To learn once from one document, with a router on n-grams."""
Range = tuple[float, float]


@dataclass(frozen=True)
class Net:
    """Bytes of weights with all memories of a recipe, against the base.

    Args:
        memories: how many. total: of the backbone and them. saved: against the base; negative: more than it.
        break_even: with how many memories the two are equal, rounded down; None: memories are off.
    """

    memories: int
    total: int
    saved: int
    break_even: int | None


def training_tokens(recipe: Recipe) -> dict[str, int]:
    """Tokens that every training stage reads, and a stage that learns a choice, by stage."""
    tokens = {
        stage.name: stage.options.max_steps
        * stage.options.batch_size
        * recipe.sequence_length
        * recipe.train.gradient_accumulation
        for stage in recipe.stages
        if isinstance(stage.options, Training)
    }
    learned = choice_learned(recipe)
    if learned is not None:
        tokens["restore"] = learned.max_steps * learned.batch_size * recipe.sequence_length
    return tokens


def asked_tokens(recipe: Recipe) -> dict[str, int]:
    """Tokens that training reads of each domain, and of `retention`."""
    domains, given = recipe.domain_names, recipe.distill.domain_weights
    weights = {name: given.get(name, 1.0) for name in domains}
    whole = sum(weights.values())
    asked = dict.fromkeys(domains, 0.0)
    retention = 0.0
    training = training_tokens(recipe)
    for stage in recipe.stages:
        tokens = training.get(stage.name, 0)
        trains = isinstance(stage.options, Training)
        shared = trains and (stage.name == "learn_masks" or stage.options.lr.backbone is not None)
        share = 1 / recipe.distill.retention_every if shared and recipe.retention else 0.0
        retention += share * tokens
        for name in domains:
            part = 1 / len(domains) if stage.name == "restore" else weights[name] / whole
            asked[name] += (1 - share) * tokens * part
    counts = {name: round(tokens) for name, tokens in asked.items()}
    return counts | ({"retention": round(retention)} if recipe.retention is not None else {})


def seconds_for(operations: float) -> dict[str, Range]:
    """Lowest and highest time of so many operations, by device."""
    return {device: (operations / high, operations / low) for device, (low, high) in THROUGHPUT.items()}


def stage_seconds(recipe: Recipe, base_params: int) -> dict[str, dict[str, Range] | None]:
    """Time of every stage, by device; None where the text decides, or the stage is another package's.

    A training token takes 6 operations a parameter, one that is only read 2.

    Args:
        recipe: with the stages.
        base_params: parameters of the base.
    """
    training = training_tokens(recipe)
    times: dict[str, dict[str, Range] | None] = {}
    for stage in recipe.stages:
        if stage.name in training:
            times[stage.name] = seconds_for(6 * base_params * training[stage.name])
        elif stage.name == "evaluate":
            times[stage.name] = _evaluate_seconds(recipe, stage.options, base_params)
        elif stage.name == "route":
            times[stage.name] = _route_seconds(recipe, stage.options, base_params)
        else:
            times[stage.name] = None
    return times


def net_of(base_bytes: int, backbone_bytes: int, memory_bytes: int, memories: int) -> Net:
    """The bytes of a backbone with so many memories of the same size.

    Args:
        base_bytes: of the unpruned model.
        backbone_bytes: of the sliced one.
        memory_bytes: of one memory.
        memories: how many there are.
    """
    total = backbone_bytes + memories * memory_bytes
    even = (base_bytes - backbone_bytes) // memory_bytes if memory_bytes else None
    return Net(memories, total, base_bytes - total, even)


def _evaluate_seconds(recipe: Recipe, options: Any, base_params: int) -> dict[str, Range] | None:
    """Likelihoods alone; recall of facts comes on top."""
    tokens = getattr(options, "max_tokens", None)
    if tokens is None:
        return None
    domains = len(recipe.domain_names)
    memories = recipe.memory.is_on
    with_memory = 0 if not memories else domains if getattr(options, "swap", False) else 1
    return seconds_for(2.0 * base_params * tokens * domains * (2 + with_memory))


def _route_seconds(recipe: Recipe, options: Any, base_params: int) -> dict[str, Range] | None:
    """At most: with as many documents of every domain as the stage takes."""
    kind, epochs = getattr(options, "kind", None), getattr(options, "epochs", 1)
    labels = len(recipe.domain_names) + (recipe.retention is not None)
    documents = labels * getattr(options, "max_documents", 0)
    if kind == "ngrams":
        return dict.fromkeys(THROUGHPUT, (0.0, documents * epochs * NGRAM_SECONDS))
    tokens = documents * getattr(options, "max_tokens", 0)
    operations = {"encoder": 6.0 * ENCODER_PARAMS * tokens * epochs, "probe": 2.0 * base_params * tokens}
    if kind not in operations:
        return None
    return {device: (0.0, high) for device, (_, high) in seconds_for(operations[kind]).items()}
