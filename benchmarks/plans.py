"""Do plans come true? Peak memory and the time of every stage, planned by real steps and by the machine's
measured speed, against those of the run.

    python benchmarks/plans.py [--probe 5] [--steps 40] [--model FOLDER]... [--processor]

Three models: the one that ships with koffkit, and a Llama and a Qwen2 with random weights (time and memory do
not depend on them), each with and without a teacher cache; --model adds real ones. Every plan and run is
a command of its own, as for a user. Exit code 1 if, after `--probe`, peak memory is more than 10 % or time
more than 25 % off. Let nothing else run beside it; where something does, --processor counts the seconds of
the processor, for one thread, instead of the clock's, for plans and runs alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

MEMORY, TIME = 0.10, 0.25
ROOT = Path(__file__).parent.parent
PROCESSOR = """
import runpy, time
time.monotonic = time.perf_counter = time.process_time
runpy.run_module("koffkit", run_name="__main__", alter_sys=True)
"""
"""A program like `python -m koffkit` whose clocks stand still while it waits for the processor."""
TEXT = {"changes": ROOT / "CHANGELOG.md", "running": ROOT / "docs" / "running.md"}
SIZES = {
    "llama": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 8},
    "qwen2": {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
    },
}


def make_model(kind: str, folder: Path) -> Path:
    """A checkpoint with random weights and the tokenizer of the model that ships with koffkit."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from koffkit.embedded import path

    tokenizer = AutoTokenizer.from_pretrained(path("base"))
    sizes = {**SIZES[kind], "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe(model: str, steps: int, cached: bool) -> dict[str, Any]:
    """Gates and memories in all layers."""
    return {
        "koffkit": 1,
        "name": "plans",
        "base": {"model": model, "dtype": "float32"},
        "domains": {name: {"text": str(path)} for name, path in TEXT.items()},
        "sequence_length": 128,
        "mask": {"structures": ["mlp_neuron"], "global_sparsity": 0.1},
        "memory": {
            "layers": "all",
            "lora": {"rank": 16, "alpha": 16, "targets": ["k_proj", "v_proj", "up_proj", "down_proj"]},
            "kv": {"tokens": 16},
        },
        "distill": {"cache": cached},
        "stages": [
            {"learn_masks": {"max_steps": steps, "batch_size": 4}},
            {"recover": {"max_steps": steps, "batch_size": 4}},
            {"evaluate": {"max_tokens": 2048}},
        ],
    }


def command(folder: Path, processor: bool, *arguments: str) -> dict[str, Any]:
    """What `koffkit compress` answers, with a cache of its own."""
    environment = os.environ | {"KOFFKIT_CACHE": str(folder / "kept")}
    if processor:  # several threads would count together
        environment |= {"OMP_NUM_THREADS": "1"}
    line = [
        sys.executable,
        *(["-c", PROCESSOR] if processor else ["-m", "koffkit"]),
        "compress",
        str(folder / "recipe.yaml"),
        *arguments,
        "--json",
        "-q",
    ]
    done = subprocess.run(line, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(model: str, steps: int, probe: int, cached: bool, processor: bool) -> dict[str, Any]:
    """One run with its two plans."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(json.dumps(recipe(model, steps, cached)))
        by_speed = command(folder, processor, "--dry-run")["forecast"]
        by_steps = command(folder, processor, "--dry-run", "--probe", str(probe))["forecast"]
        spent = command(folder, processor, "--output", str(folder / "run"))["costs"]["spent"]
    return {"machine": by_speed, "probe": by_steps, "spent": spent}


def compared(found: dict[str, Any], basis: str) -> dict[str, float]:
    """Planned over actual: time of the stages together, of each, peak memory, disk."""
    planned, spent = found[basis], found["spent"]
    known = {name: seconds for name, seconds in planned["seconds"].items() if seconds is not None}
    ratios = {"time": sum(known.values()) / sum(spent["seconds"][name] for name in known)}
    ratios |= {name: seconds / spent["seconds"][name] for name, seconds in known.items()}
    return ratios | {part: planned[part] / spent[part] for part in ("peak_memory", "disk")}


@click.command(help=__doc__)
@click.option("--probe", default=5, show_default=True, help="Real steps of each training stage.")
@click.option("--steps", default=40, show_default=True, help="Steps of each training stage of the runs.")
@click.option("--model", "models", multiple=True, type=click.Path(path_type=Path, exists=True))
@click.option("--processor", is_flag=True, help="Seconds of the processor, on one thread.")
@click.option("--json", "as_json", is_flag=True)
def main(probe: int, steps: int, models: tuple[Path, ...], processor: bool, as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        bases = {"quickstart": "embedded:base"}
        bases |= {kind: str(make_model(kind, Path(name) / kind)) for kind in SIZES}
        bases |= {path.name: str(path.resolve()) for path in models}
        for title, base in bases.items():
            for cached in (False, True):
                found = measure(base, steps, probe, cached, processor)
                for basis in ("probe", "machine"):
                    row = {"model": title, "cache": cached, "basis": basis, **compared(found, basis)}
                    rows.append(row)
                    click.echo(json.dumps(row), err=True)
    click.echo(json.dumps(rows)) if as_json else show(rows)
    sys.exit(0 if all(map(holds, rows)) else 1)


def holds(row: dict[str, Any]) -> bool:
    """Whether a plan by real steps came true; the other basis promises nothing."""
    near = abs(row["peak_memory"] - 1) <= MEMORY and abs(row["time"] - 1) <= TIME
    return row["basis"] == "machine" or near


def show(rows: list[dict[str, Any]]) -> None:
    parts = [name for name in rows[0] if name not in ("model", "cache", "basis")]
    table = Table(title="planned / actual")
    for column in ("model", "cache", "planned by", *parts, "holds"):
        table.add_column(column, justify="right" if column in parts else "left")
    for row in rows:
        figures = [f"{row[name]:.2f}" for name in parts]
        said = "" if row["basis"] == "machine" else "yes" if holds(row) else "NO"
        table.add_row(row["model"], "yes" if row["cache"] else "no", row["basis"], *figures, said)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
