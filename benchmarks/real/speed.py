"""How much faster a sliced real LLM is: prefill and decoding apart, against its share of the parameters.

    python benchmarks/real/prepare.py
    python benchmarks/real/speed.py [--model FOLDER] [--sparsity .12,.3] [--multiple 64,1]

Each backbone has equally many neurons in every layer, a multiple of 64 or what the budget leaves
(`--multiple 1`); which ones, the magnitude of their weights says, since speed does not depend on it. Base
and backbones run in turns in one process, by transformers; with `--llama-cpp`, a Python that has `xllamacpp`,
in llama.cpp (f32, flash attention off). Counted is the CPU time of the process, which other work on the
machine disturbs less than the clock on the wall; on one thread and alone the two are the same. Prints
medians, the speed-up (the median over rounds, against the base of the same round), and the speed-up over the
ratio of parameters: 1 is what fewer parameters promise. `--profile`: where the time of transformers goes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click

HERE = Path(__file__).parent
TEXT = HERE.parent.parent / "README.md"  # what a recipe must have; no mask here depends on it
PREFILL, DECODE = {1: 256, 8: 32}, 16
"""Tokens of each row of a prompt, by rows of a batch; tokens to decode."""
Rounds = dict[str, list[float]]
"""Seconds by model, round by round."""


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


def in_turns(calls: dict[str, Callable[[], float]], rounds: int) -> Rounds:
    """Measurements, taken in turns; the first round warms up."""
    found: Rounds = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            value = call()
            if number:
                found[name].append(value)
    return found


def loaded(folders: dict[str, Path]) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    return {
        name: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for name, folder in folders.items()
    }


def prefill(model: Any, rows: int) -> float:
    """Seconds for a prompt of PREFILL tokens a row."""
    import torch

    ids = torch.randint(5, 40000, (rows, PREFILL[rows]), generator=torch.Generator().manual_seed(0))
    start = time.process_time()
    with torch.no_grad():
        model(input_ids=ids, use_cache=True, logits_to_keep=1)
    return time.process_time() - start


def decode(model: Any, rows: int) -> float:
    """Seconds for DECODE tokens a row after 16."""
    import torch

    ids = torch.randint(5, 40000, (rows, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        start = time.process_time()
        for _ in range(DECODE):
            token = found.logits[:, -1:].argmax(-1)
            found = model(input_ids=token, past_key_values=found.past_key_values)
    return time.process_time() - start


TASKS = {f"{task.__name__}, batch {rows}": (task, rows) for task in (prefill, decode) for rows in PREFILL}


def transformers_seconds(folders: dict[str, Path], rounds: int) -> dict[str, Rounds]:
    """Seconds by task and model."""
    models = loaded(folders)
    return {
        name: in_turns({own: partial(task, model, rows) for own, model in models.items()}, rounds)
        for name, (task, rows) in TASKS.items()
    }


def kind_of(name: str) -> str | None:
    """What a module of transformers belongs to; None: a module that holds others."""
    if name == "lm_head":
        return "head"
    if ".mlp." in name and name.endswith("_proj"):
        return "MLP, linear"
    return "attention, linear" if name.endswith("_proj") else None


def profiled(folders: dict[str, Path], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds of a task by kind of module; "rest": attention itself, norms, rotations, activations,
    the cache, and Python."""
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in TASKS}
    for own, model in loaded(folders).items():
        spent = watched(model)
        for name, (task, rows) in TASKS.items():
            parts: dict[str, list[float]] = {}
            for _ in range(rounds + 1):
                spent.clear()
                total = task(model, rows)
                for kind, value in {**spent, "rest": total - sum(spent.values())}.items():
                    parts.setdefault(kind, []).append(1000 * value)
            found[name][own] = {kind: round(median(values[1:]), 2) for kind, values in parts.items()}
    return found


def watched(model: Any) -> Counter[str]:
    """Seconds that a model's modules take from now on, by their kind."""
    spent: Counter[str] = Counter()
    began: list[float] = []
    for name, module in model.named_modules():
        kind = kind_of(name)
        if kind is not None:
            module.register_forward_pre_hook(lambda *_: began.append(time.process_time()))
            module.register_forward_hook(
                lambda *_, kind=kind: spent.update({kind: time.process_time() - began.pop()})
            )
    return spent


def llama_cpp_seconds(python: Path, files: dict[str, Path], rounds: int) -> dict[str, Rounds]:
    """The same of llama.cpp, in an environment of its own."""
    asked = {"files": {name: str(path) for name, path in files.items()}, "rounds": rounds}
    script = HERE / "speed_llama_cpp.py"
    done = subprocess.run(
        [python, script, json.dumps(asked | {"prefill": PREFILL, "decode": DECODE})],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def parameters(export: Path) -> tuple[int, int]:
    """Of the base and of the backbone."""
    manifest = json.loads((export / "koffkit.json").read_text())
    return manifest["base"]["parameters"], manifest["backbone"]["parameters"]


def ratios(seconds: Rounds, shares: dict[str, float]) -> dict[str, dict[str, float]]:
    """Speed-up of each backbone over the base, and over what its parameters promise."""
    found = {}
    for name, own in seconds.items():
        faster = median(base / value for base, value in zip(seconds["base"], own, strict=True))
        found[name] = {
            "seconds": round(median(own), 4),
            "speed-up": round(faster, 3),
            "of promised": round(faster / shares[name], 3),
        }
    return found


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
@click.option("--profile", is_flag=True, help="Where the time goes, by kind of module.")
def main(
    model: Path,
    sparsity: str,
    multiple: str,
    llama_cpp: Path | None,
    rounds: int,
    work: Path,
    profile: bool,
) -> None:
    """Print every figure as JSON."""
    wanted = [(float(level), int(step)) for level in sparsity.split(",") for step in multiple.split(",")]
    names = {pair: f"{pair[0]:.0%} gone, multiple of {pair[1]}" for pair in wanted}
    exports = {names[pair]: backbone(model, *pair, work, "hf") for pair in wanted}
    counts = {name: parameters(export) for name, export in exports.items()}
    shares = {"base": 1.0} | {name: base / own for name, (base, own) in counts.items()}
    folders = {"base": model} | {name: export / "backbone" for name, export in exports.items()}
    if profile:
        sys.stdout.write(json.dumps(profiled(folders, rounds), indent=2) + "\n")
        return
    found: dict[str, Any] = {"parameters": counts, "transformers": {}}
    if llama_cpp is None:
        found["transformers"] = transformers_seconds(folders, rounds)
    else:
        files = {names[pair]: backbone(model, *pair, work, "gguf") for pair in wanted}
        models = {name: folder / "backbone" / "model.gguf" for name, folder in files.items()}
        models["base"] = whole(model, work) / "backbone" / "model.gguf"
        found["llama.cpp"] = llama_cpp_seconds(llama_cpp, models, rounds)
    for tool in ("transformers", "llama.cpp"):
        found[tool] = {task: ratios(own, shares) for task, own in found.get(tool, {}).items()}
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
