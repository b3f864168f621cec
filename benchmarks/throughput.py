"""How fast is `learn_masks` at the true shape of a model, how much memory does it take, and where does the
time go?

    python benchmarks/throughput.py      # Llama-3.2-3B and Qwen2.5-3B, the paper's recipes; a GPU
    python benchmarks/throughput.py --model llama-3.2-3b --set train.gradient_checkpointing=false \\
        --peak-tflops 989
    python benchmarks/throughput.py --layers 2 --width 256     # a toy of the same form, without a GPU

Weights and tokens are random: time and memory do not depend on them. Every row is a recipe as it ships, with
and without gradient checkpointing and teacher cache; `sft.py` compares with a step of PEFT. Model-FLOP
utilisation counts what the method needs - a teacher's (without a cache) and a student's forward pass, and the
gradients of activations, memories and gates, none of frozen weights - and not what checkpointing computes
again.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

LLAMA = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
}
QWEN = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
}
SHAPES: dict[str, dict[str, Any]] = {"llama-3.2-3b": LLAMA, "qwen2.5-3b": QWEN}
SPANS = ("teacher", "student", "loss", "backward", "update")
WARM_UP = 3


def make_loop(config: dict[str, Any], name: str, overrides: list[str], folder: Path) -> Any:
    """A `learn_masks` loop on a random model and random tokens; nothing is read from disk but those."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from koffkit.checkpoint.spec import ModelSpec
    from koffkit.data.corpus import Corpus
    from koffkit.data.packing import PackedTokens
    from koffkit.model.kv_attention import use_koffkit_attention
    from koffkit.planning.plan import budget_of
    from koffkit.progress import Silent
    from koffkit.recipe.load import load_recipe
    from koffkit.run.folder import RunFolder
    from koffkit.training.build import make_accelerator, make_student
    from koffkit.training.context import Context
    from koffkit.training.loop import DistillationLoop

    loaded = load_recipe(f"paper/{name}-topics", overrides)
    recipe, spec = loaded.recipe, ModelSpec(config=config)
    run = RunFolder(folder)
    accelerator = make_accelerator(recipe, run)
    torch.manual_seed(0)
    with accelerator.device:
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**config), dtype=getattr(torch, recipe.base.dtype)
        )
    model.requires_grad_(False)
    use_koffkit_attention(model)
    student = accelerator.prepare_model(make_student(recipe, spec, model, gated=True))
    path = folder / "tokens.bin"
    np.random.default_rng(0).integers(config["vocab_size"], size=1 << 20, dtype=np.int32).tofile(path)
    tokens = PackedTokens(path)
    corpus = Corpus(dict.fromkeys(recipe.domain_names, tokens), {}, tokens)
    context = Context(loaded, run, corpus, None, accelerator, student, budget_of(recipe, spec), Silent())
    return DistillationLoop(context, "learn_masks", recipe.stages[0].options, train_gates=True)


def model_flops(config: dict[str, Any], loop: Any) -> float:
    """Floating-point operations that one token of a step needs; with a cache none of the teacher's."""
    from koffkit.checkpoint.spec import ModelSpec
    from koffkit.planning.work import step_work

    recipe = loop.recipe.model_copy(
        update={"train": loop.recipe.train.model_copy(update={"gradient_checkpointing": False})}
    )
    cached = loop.context.cache is not None
    work = step_work(recipe, ModelSpec(config=config), loop.options, cached=cached)
    return work.operations / (
        loop.options.batch_size * recipe.sequence_length * recipe.train.gradient_accumulation
    )


def open_cache(loop: Any, folder: Path) -> None:
    """A teacher cache that has the sequences of all steps that will be measured."""
    from koffkit.data.teacher_cache import MEANING, TargetFile
    from koffkit.training.teaching import TeacherCache

    recipe, context = loop.recipe, loop.context
    tokens = next(iter(context.corpus.train.values()))
    tokens.keep_cuts(0)
    facts = dict.fromkeys(MEANING, "random") | {"sequence_length": recipe.sequence_length}
    vocabulary, count = loop.student.head.shape[0], tokens.sequences_of_epoch(recipe.sequence_length)
    top = loop.objective.loss.num_targets(recipe.distill)
    file = TargetFile(folder, "random", count, facts, top=top, vocabulary=vocabulary)
    context.cache = TeacherCache(folder, {0: file}, recipe.distill.chunk_tokens)


def measure(loop: Any, steps: int) -> dict[str, float]:
    """Tokens a second over `steps` steps after a warm-up, and the peak memory of all of them."""
    from koffkit.training.profile import peak_memory

    device = loop.context.accelerator.device
    for step in range(WARM_UP + (0 if loop.context.cache is None else steps)):  # a cache is filled
        loop._step(step)
    _wait(device)
    begin, tokens = time.perf_counter(), 0
    for step in range(WARM_UP, WARM_UP + steps):
        tokens += int(loop._step(step)["tokens"])
    _wait(device)
    seconds = time.perf_counter() - begin
    return {"tokens_per_second": tokens / seconds, "peak_memory": peak_memory(device)}


def profile(loop: Any, first: int, steps: int = 2) -> tuple[dict[str, float], list[tuple[str, float]]]:
    """Share of the time by part of a step, and the kernels (on a CPU: operators) that take the most."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    device = loop.context.accelerator.device
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with torch_profile(activities=kinds) as profiler:
        for step in range(first, first + steps):
            loop._step(step)
        _wait(device)
    rows = profiler.key_averages()
    own, whole = (
        ("self_device_time_total", "device_time_total")
        if device.type == "cuda"
        else ("self_cpu_time_total", "cpu_time_total")
    )
    spans = {
        row.key.removeprefix("koffkit."): getattr(row, whole)
        for row in rows
        if row.key.startswith("koffkit.")
    }
    kernels = sorted(
        ((row.key, getattr(row, own)) for row in rows if not row.key.startswith("koffkit.")),
        key=lambda row: -row[1],
    )
    total, all_kernels = sum(spans.values()) or 1.0, sum(value for _, value in kernels) or 1.0
    return {name: spans.get(name, 0.0) / total for name in SPANS}, [
        (name, value / all_kernels) for name, value in kernels[:6]
    ]


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run(
    name: str,
    config: dict[str, Any],
    overrides: list[str],
    steps: int,
    peak: float | None,
    cached: bool = False,
) -> dict[str, Any]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        loop = make_loop(config, name, overrides, Path(folder))
        if cached:
            open_cache(loop, Path(folder))
        row: dict[str, Any] = {"model": name, "overrides": overrides, "cache": cached, **measure(loop, steps)}
        row["flops_per_token"] = model_flops(config, loop)
        row["mfu"] = row["tokens_per_second"] * row["flops_per_token"] / (peak * 1e12) if peak else None
        row["spans"], row["kernels"] = profile(loop, WARM_UP + steps)
    return row


def show(rows: list[dict[str, Any]], device: str) -> None:
    console = Console(width=140)
    table = Table(title=f"learn_masks on {device}")
    for column in ("model", "checkpointing", "cache", "tokens/s", "MFU", "peak memory", *SPANS):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        checkpointing = "no" if "train.gradient_checkpointing=false" in row["overrides"] else "yes"
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        shares = (f"{row['spans'][name]:.0%}" for name in SPANS)
        table.add_row(
            row["model"],
            checkpointing,
            "yes" if row["cache"] else "no",
            f"{row['tokens_per_second']:,.0f}",
            mfu,
            f"{row['peak_memory'] / 1e9:.1f} GB",
            *shares,
        )
    console.print(table)
    for row in rows:
        console.print(
            f"{row['model']}: " + ", ".join(f"{name} {share:.0%}" for name, share in row["kernels"]),
            markup=False,
        )


@click.command(help=__doc__)
@click.option("--model", "models", multiple=True, type=click.Choice(list(SHAPES)), help="[default: all]")
@click.option("--steps", default=10, show_default=True)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    help="Change the recipe; naming gradient checkpointing runs that row only.",
)
@click.option("--layers", type=int, help="Fewer layers than the model has.")
@click.option("--width", type=int, help="Hidden size of a toy of the same form.")
@click.option(
    "--peak-tflops",
    type=float,
    help="Of the device, dense, in the type trained in: 989 for an H100 SXM in bfloat16.",
)
@click.option("--json", "as_json", is_flag=True)
def main(
    models: tuple[str, ...],
    steps: int,
    overrides: tuple[str, ...],
    layers: int | None,
    width: int | None,
    peak_tflops: float | None,
    as_json: bool,
) -> None:
    import torch

    from koffkit.cli.console import quiet_libraries

    quiet_libraries()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    rows = []
    for name in models or SHAPES:
        config = SHAPES[name] | ({"num_hidden_layers": layers} if layers else {})
        if width:
            config |= {
                "hidden_size": width,
                "intermediate_size": 3 * width,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
            }
            config |= {"head_dim": width // 4, "vocab_size": 4096}
        memory = [f"memory.layers={{upper: {min(16, config['num_hidden_layers'])}}}"]
        both = [] if any("gradient_checkpointing" in one for one in overrides) else ["true", "false"]
        for more in [[f"train.gradient_checkpointing={on}"] for on in both] or [[]]:
            for cached in (False, True):
                rows.append(run(name, config, [*memory, *overrides, *more], steps, peak_tflops, cached))
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
    click.echo(json.dumps(rows)) if as_json else show(rows, device)


if __name__ == "__main__":
    main()
