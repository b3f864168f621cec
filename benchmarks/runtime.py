"""What memories cost at run time: mixed batches, attaching, loading, and many memories in little space.

    python benchmarks/runtime.py EXPORT [--rows 8] [--new-tokens 64] [--rounds 5] [--only batches]

EXPORT has several memories. Batches are timed in turns, and the medians of whole `generate` calls are
compared: one memory for all rows, a memory for each row in turn, and PEFT's `adapter_names` with the LoRA
halves of the same memories. Then: `attach`; reading a bundle's files against loading it; and 100 copies of
one memory under a budget that holds ten.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch

from koffkit import KoffModel
from koffkit.artefact.bundle import Bundle, open_bundle
from koffkit.artefact.digests import file_entry

CLOCK = {"now": time.perf_counter}


def in_turns(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = CLOCK["now"]()
            call()
            if number:  # the first round warms up
                seconds[name].append(CLOCK["now"]() - start)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: median(values) for name, values in seconds.items()}


def ratio(seconds: Mapping[str, list[float]], one: str, other: str) -> float:
    """The median of the ratios of neighbours in time: what else the machine does comes and goes."""
    return median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def peft_model(export: Path, domains: list[str]) -> Any:
    """PEFT with the LoRA half of every memory."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(export / "backbone", dtype=torch.float32)
    first, *others = domains
    model = PeftModel.from_pretrained(stock, export / "memories" / first, adapter_name=first)
    for name in others:
        model.load_adapter(export / "memories" / name, name)
    return model.eval()


def batches(export: Path, rows: int, new_tokens: int, rounds: int) -> dict[str, float]:
    """Seconds of whole calls of `generate`, and their ratios."""
    model = KoffModel.from_pretrained(export, dtype=torch.float32)
    domains = model.domains
    mixed = [domains[row % len(domains)] for row in range(rows)]
    ids = torch.randint(5, 200, (rows, 32), generator=torch.Generator().manual_seed(0))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    fixed = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    whole = dict(model.store._loaded)
    lora = {name: replace(memory, kv={}, neurons={}) for name, memory in whole.items()}
    peft = peft_model(export, domains)

    def koffkit(memories: Mapping[str, Any], names: list[str]) -> Callable[[], Any]:
        def call() -> None:
            model.store._loaded.update(memories)
            model.generate(input_ids=ids, memory=names, **fixed)

        return call

    def by_peft() -> None:
        peft.generate(**given, adapter_names=mixed, do_sample=False, **fixed)

    seconds = in_turns(
        {
            "bare": lambda: model.generate(input_ids=ids, memory=None, **fixed),
            "one memory": koffkit(whole, [domains[0]] * rows),
            "mixed": koffkit(whole, mixed),
            "one LoRA": koffkit(lora, [domains[0]] * rows),
            "mixed LoRA": koffkit(lora, mixed),
            "mixed LoRA by PEFT": by_peft,
        },
        rounds,
    )
    ratios = {
        "mixed / one memory": ratio(seconds, "mixed", "one memory"),
        "mixed / one LoRA": ratio(seconds, "mixed LoRA", "one LoRA"),
        "PEFT / mixed LoRA": ratio(seconds, "mixed LoRA by PEFT", "mixed LoRA"),
        "PEFT / mixed": ratio(seconds, "mixed LoRA by PEFT", "mixed"),
    }
    return {**medians(seconds), **ratios}


def read_whole(bundle: Bundle) -> int:
    """Read the bytes of a bundle's files."""
    return sum(len((bundle.path / name).read_bytes()) for name in bundle.info.files)


def hashed(bundle: Bundle) -> int:
    """The same, and their digests."""
    return sum(file_entry(bundle.path / name).size for name in bundle.info.files)


def loading(export: Path, rounds: int) -> dict[str, float]:
    """Milliseconds of attaching, of reading a bundle's files (from the system's cache) and of loading it:
    into the room of another memory that went, into new room, and with all checks of a bundle that is new."""
    model = KoffModel.from_pretrained(export, dtype=torch.float32, memory_budget=1 << 40)
    name = model.domains[0]
    bundle = open_bundle(export / "memories" / name)

    def load(budget: int | None) -> Callable[[], None]:
        def call() -> None:
            model.store.budget = budget
            model.store.reload()
            with model.store.use([name]):
                pass

        return call

    def take_new() -> None:
        model.unload_memory(name)
        model.load_memory(bundle)

    calls = {
        "attach": lambda: model.attach(name),
        "read": lambda: read_whole(bundle),
        "load": load(1 << 40),
    }
    new_room = in_turns({"read": calls["read"], "load": load(None)}, 6 * rounds)  # as long as none is spare
    seconds = in_turns(calls, 6 * rounds)
    checked = in_turns({"hash": lambda: hashed(bundle), "load_memory": take_new}, 6 * rounds)
    milliseconds = {f"{what} (ms)": 1000 * value for what, value in medians(seconds | checked).items()}
    return {
        **milliseconds,
        "load / read": ratio(seconds, "load", "read"),
        "load into new room (ms)": 1000 * median(new_room["load"]),
        "load into new room / read": ratio(new_room, "load", "read"),
        "load_memory / read and hash": ratio(checked, "load_memory", "hash"),
    }


def many(export: Path, count: int = 100, room: int = 10) -> dict[str, float]:
    """Copies of one memory under a budget: bytes held at most, milliseconds of a call that pages one in."""
    model = KoffModel.from_pretrained(export, dtype=torch.float32, memory_budget=1 << 40)
    source = export / "memories" / model.domains[0]
    with model.store.use([model.domains[0]]):
        size = model.store.num_bytes
    model.store.reload()
    model.store.budget = room * size
    ids = torch.tensor([[5, 6, 7, 8]])
    most = 0
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(source, Path(folder) / "one")
        original = open_bundle(Path(folder) / "one")
        for number in range(count):
            model.store.add(replace(original, domain=f"m{number}"))
        start = time.perf_counter()
        for number in range(count):
            model.logits(ids, f"m{number}")
            most = max(most, model.store.num_bytes)
        paged = (time.perf_counter() - start) / count
        start = time.perf_counter()
        for _ in range(count):
            model.logits(ids, f"m{count - 1}")
        there = (time.perf_counter() - start) / count
    return {
        "memories": count,
        "bytes of one": size,
        "held at most": most / size,
        "paged in (ms)": 1000 * paged,
        "there (ms)": 1000 * there,
    }


@click.command()
@click.argument("export", type=click.Path(path_type=Path, exists=True))
@click.option("--rows", default=8, show_default=True)
@click.option("--new-tokens", default=64, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--only", type=click.Choice(["batches", "loading", "many"]), help="By default all three.")
@click.option(
    "--cpu-time", is_flag=True, help="Count this process's time of the CPU: other work disturbs less."
)
def main(export: Path, rows: int, new_tokens: int, rounds: int, only: str | None, cpu_time: bool) -> None:
    """Print every figure as JSON."""
    if cpu_time:
        CLOCK["now"] = time.process_time
    measured = {
        "batches": lambda: batches(export, rows, new_tokens, rounds),
        "loading": lambda: loading(export, rounds),
        "many": lambda: many(export),
    }
    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    found |= {name: measure() for name, measure in measured.items() if only in (None, name)}
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
