"""A step of learn_masks against a step of supervised fine-tuning with PEFT: the same model, batch, LoRA and
layers.

    python benchmarks/sft.py [--model FOLDER] [--tokens 256] [--batch 1] [--rank 16] [--upper N] [--rounds 5]

Steps (forward and backward pass, and the update) run in turns on the same batches. Time is that of the
processor, so that other work on the machine does not count. Ours has a teacher, gates and a KV memory
besides. Prints seconds, tokens a second, the share of the matrix products' rate that this machine reaches
(model-FLOP utilisation), peak memory (of a process of its own each), and the operators that take the most.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click

TARGETS = ["k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
TEXT = Path(__file__).parent.parent / "CHANGELOG.md"
WAYS = ("sft", "uncached", "cached")
LIMITS = {"uncached": 1.575, "cached": 1.05}
Step = Callable[[Any], Any]


def recipe(model: str, settings: dict[str, int]) -> dict[str, Any]:
    layers: Any = {"upper": settings["upper"]} if settings["upper"] else "all"
    mask = {"structures": ["mlp_neuron"], "global_sparsity": 0.1, "layout": "ragged", "init": "cold"}
    lora = {"rank": settings["rank"], "alpha": settings["rank"], "targets": TARGETS}
    return {
        "koffkit": 1,
        "name": "sft",
        "base": {"model": model, "dtype": "float32"},
        "domains": {"any": {"text": str(TEXT)}},
        "sequence_length": settings["tokens"],
        "mask": mask | {"layers": layers},
        "memory": {"layers": layers, "lora": lora, "kv": {"tokens": 32}},
        "distill": {"cache": True},
        "stages": [{"learn_masks": {"max_steps": 1000, "batch_size": settings["batch"]}}],
    }


def make_loop(model: str, settings: dict[str, int], folder: Path) -> Any:
    from koffkit.checkpoint.spec import ModelSpec
    from koffkit.hub import locate
    from koffkit.progress import Silent
    from koffkit.recipe.load import load_recipe
    from koffkit.run.folder import RunFolder
    from koffkit.training.build import build_context
    from koffkit.training.loop import DistillationLoop
    from koffkit.training.teaching import open_cache

    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe(model, settings)))
    loaded = load_recipe(path)
    base = ModelSpec.open(locate(model, folder))
    context = build_context(loaded, RunFolder(folder / "run"), base, Silent())
    context.cache = open_cache(context, "")
    return DistillationLoop(context, "learn_masks", loaded.recipe.stages[0].options, train_gates=True)


def steps_of(loop: Any, ways: tuple[str, ...]) -> dict[str, Step]:
    """A step by way, from the number of the batch."""
    cache = loop.context.cache

    def ours(cached: bool) -> Step:
        def step(number: int) -> None:
            loop.context.cache = cache if cached else None
            loop._step(number)

        return step

    steps: dict[str, Step] = {"uncached": ours(False), "cached": ours(True)}
    if "sft" in ways:
        steps["sft"] = sft_step(*facts_for_sft(loop), lambda number: loop.batch_of("any", number))
    return {name: steps[name] for name in ways}


def facts_for_sft(loop: Any) -> tuple[Path, list[int], int]:
    """The base, the layers with memory, and the rank."""
    return loop.student.spec.folder, list(loop.student.memories.layers), loop.recipe.memory.lora.rank


def sft_step(folder: Path, layers: list[int], rank: int, batch: Step) -> Step:
    """PEFT on a model of its own."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, layers_to_transform=layers)
    model = get_peft_model(model, config)
    model.train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-5)

    def step(number: int) -> None:
        ids = batch(number).ids
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(loop: Any, rounds: int) -> dict[str, float]:
    """Median seconds of the processor by way; the first round is not counted."""
    steps = steps_of(loop, WAYS)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        steps["cached"](number)  # the cache is filled
        for name, step in steps.items():
            begin = time.process_time()
            step(number)
            if number:
                seconds[name].append(time.process_time() - begin)
    return {name: median(values) for name, values in seconds.items()}


def operators(step: Step) -> dict[str, float]:
    """Milliseconds by operator, those that take the most."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step(0)
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    return {row.key: round(row.self_cpu_time_total / 1000, 1) for row in rows[:10]}


def peak_of(model: str, settings: dict[str, int], way: str) -> int:
    """Bytes that a process of its own took for two steps."""
    line = [sys.executable, __file__, "--model", model, "--peak-of", way]
    for name, value in settings.items():
        line += [f"--{name}", str(value)]
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True)
    return int(done.stdout)


def matrix_rate() -> float:
    """Operations a second of the processor that a product of matrices reaches."""
    import torch

    left, right = torch.ones(512, 1024), torch.ones(1024, 2048)
    taken = []
    for _ in range(6):
        begin = time.process_time()
        left @ right
        taken.append(time.process_time() - begin)
    return 2.0 * 512 * 1024 * 2048 / min(taken)


def operations_of(loop: Any, way: str) -> float:
    """Floating-point operations that a step needs."""
    from koffkit.planning.work import step_work

    whole = step_work(loop.recipe, loop.student.spec, loop.options, cached=way != "uncached")
    return whole.operations


@click.command(help=__doc__)
@click.option("--model", default="embedded:base", show_default=True, help="A folder, or the one that ships.")
@click.option("--tokens", default=256, show_default=True)
@click.option("--batch", default=1, show_default=True)
@click.option("--rank", default=16, show_default=True)
@click.option("--upper", default=0, help="Layers with gates and memory, the highest ones.  [default: all]")
@click.option("--rounds", default=5, show_default=True)
@click.option("--peak-of", type=click.Choice(WAYS), hidden=True)
def main(
    model: str, tokens: int, batch: int, rank: int, upper: int, rounds: int, peak_of: str | None
) -> None:
    settings = {"tokens": tokens, "batch": batch, "rank": rank, "upper": upper}
    with tempfile.TemporaryDirectory() as folder:
        loop = make_loop(model, settings, Path(folder))
        if peak_of is not None:
            click.echo(_peak(loop, peak_of))
            return
        click.echo(json.dumps(found(loop, model, settings, rounds), indent=2))


def _peak(loop: Any, way: str) -> int:
    from koffkit.training.profile import peak_memory

    if way == "sft":  # PEFT has a model of its own, and needs no other
        facts, batches = facts_for_sft(loop), {number: loop.batch_of("any", number) for number in (0, 1)}
        loop.context.student = loop.student = loop.optimizer = loop.groups = loop.tensor_names = None
        loop.context.accelerator.free_memory()
        gc.collect()
        step = sft_step(*facts, batches.__getitem__)
    else:
        step = steps_of(loop, (way,))[way]
    step(0)
    step(1)
    return peak_memory(loop.context.accelerator.device)


def found(loop: Any, model: str, settings: dict[str, int], rounds: int) -> dict[str, Any]:
    seconds, rate = timed(loop, rounds), matrix_rate()
    tokens = settings["tokens"] * settings["batch"]
    rows = {
        way: {
            "seconds": took,
            "tokens_per_second": tokens / took,
            "utilisation": operations_of(loop, way) / took / rate,
            "peak_memory": peak_of(model, settings, way),
            "against_sft": took / seconds["sft"],
            "limit": LIMITS.get(way),
        }
        for way, took in seconds.items()
    }
    steps = steps_of(loop, WAYS)
    return {"steps": rows, "operators": {way: operators(step) for way, step in steps.items()}}


if __name__ == "__main__":
    main()
