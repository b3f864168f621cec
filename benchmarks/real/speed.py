"""How much faster a sliced real LLM is: prefill and decoding apart, against its share of the parameters.

    python benchmarks/real/prepare.py
    python benchmarks/real/speed.py [--model FOLDER] [--sparsity .12,.3] [--multiple 64,1]

Each backbone has equally many neurons in every layer, a multiple of 64 or what the budget leaves
(`--multiple 1`); which ones, the magnitude of their weights says, since speed does not depend on it. Base
and backbones run in turns in one process, by transformers; with `--llama-cpp`, a Python that has `xllamacpp`,
also in llama.cpp (f32, flash attention off). Prints medians, the speed-up, and the speed-up over the ratio of
parameters: 1 is what fewer parameters promise.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click

HERE = Path(__file__).parent
TEXT = HERE.parent.parent / "README.md"  # what a recipe must have; no mask here depends on it
PREFILL, DECODE = {1: 512, 8: 128}, 24
"""Tokens of each row of a prompt, by rows of a batch; tokens to decode."""


def whole(model: Path, work: Path) -> Path:
    """The base as GGUF: a backbone whose memory gives back all that was removed, merged."""
    recipe = recipe_of(model, 0.025, 64)
    recipe["memory"] = {"lora": None, "kv": None, "neurons": {"count": 64}}
    recipe["stages"] += [{"restore": {"batches": 1, "batch_size": 1}}]
    return exported(recipe, work / "speed-base", "gguf", "--merge", "any")


def backbone(model: Path, sparsity: float, multiple: int, work: Path, kind: str) -> Path:
    """An export of format `kind`, made unless it is there."""
    return exported(recipe_of(model, sparsity, multiple), work / f"speed-{sparsity:g}-{multiple}", kind)


def recipe_of(model: Path, sparsity: float, multiple: int) -> dict[str, Any]:
    """A recipe without training."""
    return {
        "koffkit": 1,
        "name": "speed",
        "base": {"model": str(model.resolve()), "dtype": "float32"},
        "domains": {"any": {"text": str(TEXT)}},
        "sequence_length": 128,
        "mask": {
            "structures": ["mlp_neuron"],
            "global_sparsity": sparsity,
            "layout": "uniform",
            "multiple_of": multiple,
        },
        "memory": {"lora": None, "kv": None},
        "stages": [{"select_masks": {"selector": "magnitude"}}],
    }


def exported(recipe: dict[str, Any], run: Path, kind: str, *options: str) -> Path:
    """Run a recipe and export it, unless that was done."""
    output = Path(f"{run}-{kind}")
    if not output.is_dir():
        run.parent.mkdir(parents=True, exist_ok=True)
        path = Path(f"{run}.yaml")
        path.write_text(json.dumps(recipe))
        if not run.is_dir():
            koffkit("compress", path, "--output", run)
        more = ["-o", "type=f32"] if kind == "gguf" else []
        koffkit("export", run, "--format", kind, "--output", output, *more, *options)
    return output


def koffkit(*arguments: object) -> None:
    """Run a command of koffkit."""
    subprocess.run([sys.executable, "-m", "koffkit", *map(str, arguments)], check=True)


def in_turns(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of each measurement, taken in turns; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            value = call()
            if number:
                found[name].append(value)
    return {name: median(values) for name, values in found.items()}


def transformers_seconds(folders: dict[str, Path], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds by task and model."""
    import torch
    from transformers import AutoModelForCausalLM

    models = {
        name: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for name, folder in folders.items()
    }

    def prefill(model: Any, rows: int) -> float:
        ids = torch.randint(5, 40000, (rows, PREFILL[rows]), generator=torch.Generator().manual_seed(0))
        start = time.perf_counter()
        with torch.no_grad():
            model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start

    def decode(model: Any, rows: int) -> float:
        ids = torch.randint(5, 40000, (rows, 16), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found = model(input_ids=ids, use_cache=True, logits_to_keep=1)
            start = time.perf_counter()
            for _ in range(DECODE):
                token = found.logits[:, -1:].argmax(-1)
                found = model(input_ids=token, past_key_values=found.past_key_values)
        return time.perf_counter() - start

    return {
        f"{task.__name__}, batch {rows}": in_turns(
            {name: lambda m=model, r=rows, t=task: t(m, r) for name, model in models.items()}, rounds
        )
        for task in (prefill, decode)
        for rows in PREFILL
    }


def llama_cpp_seconds(python: Path, files: dict[str, Path], rounds: int) -> dict[str, dict[str, float]]:
    """The same of llama.cpp, one row at a time, by the server's own clock; in an environment of its own."""
    asked = {"files": {name: str(path) for name, path in files.items()}, "rounds": rounds}
    script = HERE / "speed_llama_cpp.py"
    done = subprocess.run(
        [python, script, json.dumps(asked | {"prefill": PREFILL[1], "decode": DECODE})],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def parameters(export: Path) -> tuple[int, int]:
    """Of the base and of the backbone."""
    manifest = json.loads((export / "koffkit.json").read_text())
    return manifest["base"]["parameters"], manifest["backbone"]["parameters"]


def ratios(seconds: dict[str, float], shares: dict[str, float]) -> dict[str, dict[str, float]]:
    """Speed-up of each backbone over the base, and over what its parameters promise."""
    return {
        name: {
            "seconds": round(value, 4),
            "speed-up": round(seconds["base"] / value, 3),
            "of promised": round(seconds["base"] / value / shares[name], 3),
        }
        for name, value in seconds.items()
    }


@click.command()
@click.option(
    "--model", type=click.Path(path_type=Path), default="real_data/SmolLM2-135M-Instruct", show_default=True
)
@click.option("--sparsity", default="0.12,0.3", show_default=True, help="Separated by commas.")
@click.option(
    "--multiple", default="64,1", show_default=True, help="Of neurons a layer; separated by commas."
)
@click.option("--llama-cpp", type=click.Path(path_type=Path, exists=True), help="A Python with xllamacpp.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default="runs/real", show_default=True)
def main(model: Path, sparsity: str, multiple: str, llama_cpp: Path | None, rounds: int, work: Path) -> None:
    """Print every figure as JSON."""
    wanted = [(float(level), int(step)) for level in sparsity.split(",") for step in multiple.split(",")]
    names = {pair: f"{pair[0]:.0%} gone, multiple of {pair[1]}" for pair in wanted}
    exports = {names[pair]: backbone(model, *pair, work, "hf") for pair in wanted}
    counts = {name: parameters(export) for name, export in exports.items()}
    shares = {"base": 1.0} | {name: base / own for name, (base, own) in counts.items()}
    folders = {"base": model} | {name: export / "backbone" for name, export in exports.items()}
    found = {"parameters": counts, "transformers": transformers_seconds(folders, rounds)}
    if llama_cpp is not None:
        files = {names[pair]: backbone(model, *pair, work, "gguf") for pair in wanted}
        models = {name: folder / "backbone" / "model.gguf" for name, folder in files.items()}
        models["base"] = whole(model, work) / "backbone" / "model.gguf"
        found["llama.cpp"] = llama_cpp_seconds(llama_cpp, models, rounds)
    for tool in ("transformers", "llama.cpp"):
        found[tool] = {task: ratios(own, shares) for task, own in found.get(tool, {}).items()}
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
