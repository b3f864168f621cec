"""A training step of a real LLM: with the lower layers computed once for teacher and student, and twice, and
with a teacher cache.

    python benchmarks/real/prepare.py
    python benchmarks/real/step.py [--model FOLDER] [--upper 16] [--tokens 512] [--rounds 5] [--profile]

Gates and memories (LoRA of rank 16, 32 memory tokens) are in the upper layers. Steps run in turns on the same
batches; the losses must be the same numbers, with the cache to a thousandth. Prints medians of forward and
backward pass in seconds of the processor (on a machine with other work a step takes longer, and its ratios
are the same), their ratios, how far the cache's loss is off at most, and its bytes for a token.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click

WAYS = ("once", "twice", "cached")
TARGETS = ["k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
TEXT = Path(__file__).parent.parent.parent / "CHANGELOG.md"


def recipe(model: Path, upper: int, tokens: int) -> dict[str, Any]:
    """Gates and memories in the upper layers."""
    return {
        "koffkit": 1,
        "name": "step",
        "base": {"model": str(model.resolve()), "dtype": "float32"},
        "domains": {"any": {"text": str(TEXT)}},
        "sequence_length": tokens,
        "mask": {
            "structures": ["mlp_neuron"],
            "global_sparsity": 0.1,
            "layout": "ragged",
            "layers": {"upper": upper},
        },
        "memory": {
            "layers": {"upper": upper},
            "lora": {"rank": 16, "alpha": 16, "targets": TARGETS},
            "kv": {"tokens": 32},
        },
        "distill": {"cache": True},
        "stages": [{"learn_masks": {"max_steps": 10, "batch_size": 1}}],
    }


@click.command()
@click.option(
    "--model", type=click.Path(path_type=Path), default="real_data/SmolLM2-135M-Instruct", show_default=True
)
@click.option("--upper", default=16, show_default=True, help="Layers with gates and memories.")
@click.option("--tokens", default=512, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--way", "chosen", multiple=True, type=click.Choice(WAYS), help="[default: all]")
@click.option(
    "--precision", type=click.Choice(["highest", "high", "medium"]), default="highest", show_default=True
)
@click.option("--profile", "profiled", is_flag=True, help="Also print the operators that take the most time.")
def main(
    model: Path, upper: int, tokens: int, rounds: int, chosen: tuple[str, ...], precision: str, profiled: bool
) -> None:
    """Print every figure as JSON."""
    from koffkit.training.precision import multiplying

    with tempfile.TemporaryDirectory() as folder, multiplying(precision):
        found = measure(make_loop(model, upper, tokens, Path(folder)), rounds, chosen or WAYS, profiled)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


def make_loop(model: Path, upper: int, tokens: int, folder: Path) -> Any:
    """A loop of learn_masks with an empty teacher cache."""
    from koffkit.checkpoint.spec import ModelSpec
    from koffkit.progress import Silent
    from koffkit.recipe.load import load_recipe
    from koffkit.run.folder import RunFolder
    from koffkit.training.build import build_context
    from koffkit.training.loop import DistillationLoop
    from koffkit.training.teaching import open_cache

    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe(model, upper, tokens)))
    loaded = load_recipe(path)
    context = build_context(loaded, RunFolder(folder / "run"), ModelSpec.open(model), Silent())
    context.cache = open_cache(context, "0" * 64)
    return DistillationLoop(context, "learn_masks", loaded.recipe.stages[0].options, train_gates=True)


def measure(loop: Any, rounds: int, chosen: Sequence[str], profiled: bool) -> dict[str, Any]:
    """Steps in turns; the first round is not counted."""
    import torch

    from koffkit.model.lower_layers import LowerLayers

    context = loop.context
    usual, cache = type(context).lower_layers, context.cache
    apart = lambda *_, **__: LowerLayers([])  # noqa: E731
    every = {"once": (usual, None), "twice": (apart, None), "cached": (usual, cache)}
    ways = {name: every[name] for name in chosen}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    worst = 0.0
    for number in range(rounds + 1):
        losses = {}
        batch = loop.batch_of("any", number)
        with torch.no_grad():
            context.cache = cache
            context.taught(batch)  # the cache is filled
        for name, (lower, known) in ways.items():
            type(context).lower_layers, context.cache = lower, known
            start = time.process_time()
            loss, figures = loop.distillation(batch, "any", loop._gate_values(number))
            loss.backward()
            losses[name] = figures["loss"]
            if number:
                seconds[name].append(time.process_time() - start)
        assert losses.get("twice", losses["once"]) == losses["once"], losses
        worst = max(worst, abs(losses.get("cached", losses["once"]) / losses["once"] - 1))
    medians = {name: median(values) for name, values in seconds.items()}
    found: dict[str, Any] = {
        **medians,
        **{f"{name} / once": value / medians["once"] for name, value in medians.items() if name != "once"},
        "loss off by": worst,
        "cache bytes a token": next(iter(cache._files.values())).type.itemsize / loop.recipe.sequence_length,
    }
    if profiled:
        for name, (lower, known) in ways.items():
            type(context).lower_layers, context.cache = lower, known
            found[f"operators, {name}"] = operators(loop)
    return found


def operators(loop: Any) -> dict[str, float]:
    """Milliseconds of a step by operator, those that take the most."""
    from torch.profiler import ProfilerActivity, profile

    batch, values = loop.batch_of("any", 0), loop._gate_values(0)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        loop.distillation(batch, "any", values)[0].backward()
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)[:12]
    return {row.key: round(row.self_cpu_time_total / 1000, 1) for row in rows}


if __name__ == "__main__":
    main()
