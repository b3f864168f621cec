"""Does the memory of a process fall with their number, as planned? Frozen weights that each holds, and the
most that one takes, with 1, 2 and 4 processes and `--shard`, beside what `compress --dry-run` foresees.

    python benchmarks/processes.py [--processes 1,2,4] [--hidden 768] [--layers 12] [--steps 4] [--json]

A Qwen2 with grouped queries and random weights is made, and learns masks and one memory for a few steps on
the CPU (gloo); every run is a command of its own, as for a user. The peak is the resident size of the process
that took most, from its start to its end. Exit code 1 if the weights are more than 1 % off, or the peak more
than 10 %.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
HOLDS = re.compile(r"bytes of model and LoRA, each process holds about ([\d,]+)")
NEAR = {"weights": 0.01, "peak": 0.10}


def make_model(folder: Path, hidden: int, layers: int) -> Path:
    """A checkpoint with random weights and the tokenizer of the model that ships with koffkit."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from koffkit.embedded import path

    tokenizer = AutoTokenizer.from_pretrained(path("base"))
    sizes = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe(model: Path, steps: int, sequences: int) -> dict[str, Any]:
    """Gates and LoRA in all layers."""
    targets = ["k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
    return {
        "koffkit": 1,
        "name": "processes",
        "base": {"model": str(model), "dtype": "float32"},
        "domains": {"changes": {"text": str(ROOT / "CHANGELOG.md")}},
        "sequence_length": 128,
        "mask": {"structures": ["mlp_neuron"], "global_sparsity": 0.1},
        "memory": {"layers": "all", "lora": {"rank": 8, "alpha": 8, "targets": targets}, "kv": None},
        "stages": [{"learn_masks": {"max_steps": steps, "batch_size": sequences}}],
    }


def command(path: Path, run: Path, processes: int) -> str:
    """What `koffkit compress` says while it runs."""
    line = [sys.executable, "-m", "koffkit", "compress", str(path), "--output", str(run), "--device", "cpu"]
    if processes > 1:
        line += ["--num-processes", str(processes), "--shard"]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise click.ClickException(done.stderr)
    return done.stderr


def measure(path: Path, processes: int) -> dict[str, int]:
    """Bytes of one process, planned and found: `weights` that do not train, and `peak`."""
    from koffkit.checkpoint.spec import ModelSpec
    from koffkit.planning.cluster import layer_bytes
    from koffkit.planning.plan import make_plan
    from koffkit.planning.processes import shared_run
    from koffkit.recipe.load import load_recipe

    recipe, run = load_recipe(path).recipe, path.parent / f"run-{processes}"
    spec = ModelSpec.open(Path(recipe.base.model))
    plan = make_plan(recipe, spec)
    shared = shared_run(recipe, spec, None, {}, processes, shard=processes > 1)
    whole, divided = 4 * plan.budget.base_params, layer_bytes(recipe, spec)
    found = {
        "processes": processes,
        "weights_planned": whole - divided + divided // processes,
        "weights": whole,
        "peak_planned": shared.peak_memory,
    }
    said = HOLDS.search(command(path, run, processes))
    if said is not None:  # one process has all, and does not say so
        found["weights"] = int(said[1].replace(",", "")) - 4 * plan.memory_params_training * len(plan.domains)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return found | {"peak": last["peak_memory"]}


@click.command(help=__doc__)
@click.option("--processes", "counts", default="1,2,4", show_default=True)
@click.option("--hidden", default=768, show_default=True)
@click.option("--layers", default=12, show_default=True)
@click.option("--steps", default=4, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(counts: str, hidden: int, layers: int, steps: int, as_json: bool) -> None:
    several = [int(count) for count in counts.split(",")]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "recipe.yaml"
        tree = recipe(make_model(Path(name) / "model", hidden, layers), steps, max(several))
        path.write_text(json.dumps(tree), encoding="utf-8")
        rows = [measure(path, count) for count in several]
    click.echo(json.dumps(rows)) if as_json else show(rows)
    sys.exit(0 if all(map(holds, rows)) else 1)


def holds(row: dict[str, int]) -> bool:
    """Whether a run was as planned."""
    return all(abs(row[f"{name}_planned"] / row[name] - 1) <= most for name, most in NEAR.items())


def show(rows: list[dict[str, int]]) -> None:
    table = Table(title="MB of one process")
    for name in ("processes", "frozen weights", "planned", "peak", "planned", "planned / peak"):
        table.add_column(name, justify="right")
    for row in rows:
        names = ("weights", "weights_planned", "peak", "peak_planned")
        figures = [f"{row[name] / 1e6:,.0f}" for name in names]
        table.add_row(str(row["processes"]), *figures, f"{row['peak_planned'] / row['peak']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
