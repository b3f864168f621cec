"""A training step of a real LLM with the lower layers computed once for teacher and student, and twice.

    python benchmarks/real/prepare.py
    python benchmarks/real/step.py [--model FOLDER] [--upper 16] [--tokens 512] [--rounds 5]

Gates and memories (LoRA of rank 16, 32 memory tokens) are in the upper layers. Steps run in turns on the same
batches; the losses must be the same numbers. Prints medians of forward and backward pass, and their ratio.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import click

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
        "stages": [{"learn_masks": {"max_steps": 10, "batch_size": 1}}],
    }


@click.command()
@click.option(
    "--model", type=click.Path(path_type=Path), default="real_data/SmolLM2-135M-Instruct", show_default=True
)
@click.option("--upper", default=16, show_default=True, help="Layers with gates and memories.")
@click.option("--tokens", default=512, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(model: Path, upper: int, tokens: int, rounds: int) -> None:
    """Print every figure as JSON."""
    from koffkit.checkpoint.spec import ModelSpec
    from koffkit.model.lower_layers import LowerLayers
    from koffkit.progress import Silent
    from koffkit.recipe.load import load_recipe
    from koffkit.run.folder import RunFolder
    from koffkit.training.build import build_context
    from koffkit.training.loop import DistillationLoop

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(json.dumps(recipe(model, upper, tokens)))
        loaded = load_recipe(path)
        context = build_context(loaded, RunFolder(Path(folder) / "run"), ModelSpec.open(model), Silent())
        options = loaded.recipe.stages[0].options
        loop = DistillationLoop(context, "learn_masks", options, train_gates=True)
        usual = type(context).lower_layers
        ways = {"once": usual, "twice": lambda *_, **__: LowerLayers([])}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            losses = set()
            for name, way in ways.items():
                type(context).lower_layers = way  # type: ignore[method-assign, assignment]
                start = time.perf_counter()
                loss, figures = loop.distillation(
                    loop.batch_of("any", number), "any", loop._gate_values(number)
                )
                loss.backward()
                losses.add(figures["loss"])
                if number:
                    seconds[name].append(time.perf_counter() - start)
            assert len(losses) == 1, losses
    medians = {name: median(values) for name, values in seconds.items()}
    found = {**medians, "twice / once": medians["twice"] / medians["once"]}
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
