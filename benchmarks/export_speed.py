"""Export of a random Llama of about 2 GB in 4 shards, against `cp -r` and `sync` of the same checkpoint, in
turns.

    python benchmarks/export_speed.py [--folder build/export_speed] [--layers 14] [--repeats 3]

Prints the median seconds of both by the clock and of the processor, which other work on the machine disturbs
less, their ratio, and the peak RSS of the whole export process (imports, slicing, parity gate).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import yaml

SHARDS = 4
COPY, EXPORT = "cp -r + sync", "koffkit export"
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
TARGETS = ["k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def make_base(folder: Path, num_layers: int) -> None:
    """Random bfloat16 weights, written shard by shard, with an index; the embedded model's tokenizer."""
    import torch
    from safetensors.torch import save_file

    from koffkit.checkpoint.spec import ModelSpec
    from koffkit.embedded import path as embedded

    folder.mkdir(parents=True)
    config = CONFIG | {"num_hidden_layers": num_layers}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name in TOKENIZER:
        shutil.copy(embedded("base") / name, folder)
    names = list(ModelSpec(config=config).weight_shapes.items())
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = names[shard * len(names) // SHARDS : (shard + 1) * len(names) // SHARDS]
        save_file(
            {name: (torch.randn(size, generator=generator) * 0.02).bfloat16() for name, size in part},
            folder / file,
        )
        weight_map |= {name: file for name, _ in part}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def make_run(base: Path, run: Path) -> None:
    """One training step on 8 tokens: enough for masks that no pattern makes easy to slice, and for two
    memories."""
    domain = {"jsonl": "embedded:facts/en.jsonl", "max_documents": 50}
    recipe = {
        "koffkit": 1,
        "name": "export-speed",
        "base": {"model": str(base.resolve()), "dtype": "bfloat16"},
        "domains": {"one": domain, "two": domain},
        "sequence_length": 8,
        "mask": {"structures": ["mlp_neuron", "kv_group"], "global_sparsity": 0.12, "multiple_of": 64},
        "memory": {"lora": {"rank": 16, "alpha": 16, "targets": TARGETS}, "kv": {"tokens": 32}},
        "stages": [{"learn_masks": {"max_steps": 1, "batch_size": 1}}],
    }
    path = run.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    subprocess.run([sys.executable, "-m", "koffkit", "compress", str(path), "--output", str(run)], check=True)


def apart(make: Callable[..., None], *arguments: Any) -> None:
    """Call a function in a process of its own: the peak RSS of those that are timed would start at what this
    one has taken."""
    process = multiprocessing.get_context("spawn").Process(target=make, args=arguments)
    process.start()
    process.join()
    if process.exitcode != 0:
        raise click.ClickException(f"{make.__name__}: exit code {process.exitcode}")


def timed(command: list[str]) -> tuple[float, float, int, str]:
    """Seconds by the clock and of the processor, the peak RSS of the process in bytes, and what it wrote to
    stdout."""
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    output = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise click.ClickException(f"{' '.join(command)}: exit code {process.returncode}\n{output}")
    busy = usage.ru_utime + usage.ru_stime
    return time.monotonic() - begin, busy, usage.ru_maxrss * 1024, output


def measure(base: Path, run: Path, folder: Path, repeats: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in (COPY, EXPORT)}
    busy: dict[str, list[float]] = {name: [] for name in (COPY, EXPORT)}
    peaks, phases = [], []
    copy, out = folder / "copy", folder / "out"
    for _ in range(repeats):
        for old in (copy, out):
            shutil.rmtree(old, ignore_errors=True)
        subprocess.run(["sync"], check=True)
        taken, used, _, _ = timed(["bash", "-c", f"cp -r '{base}' '{copy}' && sync"])
        seconds[COPY].append(taken)
        busy[COPY].append(used)
        shutil.rmtree(copy)
        subprocess.run(["sync"], check=True)
        options = ["--format", "hf", "--base", str(base), "--output", str(out), "--json"]
        taken, used, peak, output = timed([sys.executable, "-m", "koffkit", "export", str(run), *options])
        phases.append(json.loads(output)["seconds"])
        seconds[EXPORT].append(taken)
        busy[EXPORT].append(used)
        peaks.append(peak)
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    return {
        "base_bytes": size,
        "seconds": seconds,
        "processor": busy,
        "phases": phases,
        "ratio": median(seconds[EXPORT]) / median(seconds[COPY]),
        "peak_rss_bytes": max(peaks),
    }


@click.command(help=__doc__)
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("build/export_speed"), show_default=True
)
@click.option("--layers", default=14, show_default=True)
@click.option("--repeats", default=3, show_default=True)
def main(folder: Path, layers: int, repeats: int) -> None:
    base, run = folder / f"base-{layers}", folder / f"run-{layers}"
    if not (base / "model.safetensors.index.json").exists():
        shutil.rmtree(base, ignore_errors=True)
        click.echo(f"making {base}", err=True)
        apart(make_base, base, layers)
    if not (run / "masks.safetensors").exists():
        shutil.rmtree(run, ignore_errors=True)
        make_run(base, run)
    result = measure(base, run, folder, repeats)
    for name, values in result["seconds"].items():
        each = ", ".join(f"{value:.2f}" for value in values)
        used = median(result["processor"][name])
        click.echo(f"{name:16} {median(values):6.2f} s  ({each}); of the processor {used:.2f} s")
    for name in result["phases"][0]:
        values = [phase[name] for phase in result["phases"]]
        click.echo(f"  {name:14} {median(values):6.2f} s")
    click.echo(
        f"{result['base_bytes'] / 1e9:.2f} GB in {SHARDS} shards: export takes {result['ratio']:.2f} times "
        "as long as cp -r + sync, "
        f"peak RSS {result['peak_rss_bytes'] / 1e9:.2f} GB"
    )
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
