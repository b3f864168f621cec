"""The bombs: each writes a file into a folder that holds `base`, `run`, `out` and `recipe.yaml`, and says
which command meets it."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import yaml
import zstandard

from ..common import list_anew

Build = Callable[[Path], list[str]]
DEEP = "[" * 200_000
MEASURE = ["evaluate", "out", "--data"]


def recipe(text: str) -> Build:
    def build(folder: Path) -> list[str]:
        (folder / "bomb.yaml").write_text(text)
        return ["recipe", "validate", "bomb.yaml"]

    return build


def changed_recipe(*keys: str, value: object) -> Build:
    """A sound recipe with one absurd value."""

    def build(folder: Path) -> list[str]:
        tree = yaml.safe_load((folder / "recipe.yaml").read_text())
        place = tree
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (folder / "bomb.yaml").write_text(yaml.safe_dump(tree))
        return ["compress", "bomb.yaml", "--dry-run"]

    return build


def text(name: str, content: Callable[[], bytes]) -> Build:
    def build(folder: Path) -> list[str]:
        (folder / name).write_bytes(content())
        return [*MEASURE, name]

    return build


def pipe(*place: str, command: list[str]) -> Build:
    """A named pipe, which nobody ever writes to, in place of a file."""

    def build(folder: Path) -> list[str]:
        path = folder.joinpath(*place)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        return command

    return build


def written(place: str, content: Callable[[], bytes], command: list[str]) -> Build:
    def build(folder: Path) -> list[str]:
        (folder / place).write_bytes(content())
        return command

    return build


def listed(place: str, content: Callable[[], bytes], command: list[str]) -> Build:
    """A file of the export whose manifest lists the bomb, so that the digests do not give it away."""

    def build(folder: Path) -> list[str]:
        (folder / "out" / place).write_bytes(content())
        list_anew(folder / "out", place)
        return command

    return build


def header(content: str, length: int | None = None) -> Callable[[], bytes]:
    """A safetensors file with this header."""
    data = content.encode()
    return lambda: struct.pack("<Q", len(data) if length is None else length) + data


def tensors(count: int) -> str:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return json.dumps({f"t{index}": entry for index in range(count)})


def one(**changes: object) -> str:
    return json.dumps({"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes})


def config(**changes: object) -> Build:
    def build(folder: Path) -> list[str]:
        path = folder / "base" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return ["compress", "recipe.yaml", "--set", "base.model=base", "--dry-run"]

    return build


def multiplying() -> str:
    names = "abcdefghi"
    lines = [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in pairwise(names)]
    return "\n".join(["a: &a [l, l, l, l, l, l, l, l, l, l]", *lines]) + "\n"


ZEROS = bytes(200_000_000)
WEIGHTS = "base/model.safetensors"
INSPECT_BASE, INSPECT, VERIFY, RUN = (
    ["inspect", "base"],
    ["inspect", "out"],
    ["verify", "out"],
    ["inspect", "run"],
)
GENERATE = ["generate", "out", "--prompt", "x", "--max-new-tokens", "1"]
BOMBS: dict[str, Build] = {
    "recipe: aliases that multiply": recipe(multiplying()),
    "recipe: an alias inside itself": recipe("a: &a [*a]\n"),
    "recipe: deep lists": recipe("a: " + DEEP),
    "recipe: deep mappings": recipe("a: " + "{x: " * 100_000),
    "recipe: many values": recipe("a: [" + "l," * 400_000 + "]"),
    "recipe: 300 MB": recipe("a: " + "x" * 300_000_000),
    "recipe: a pipe": pipe("bomb.yaml", command=["recipe", "validate", "bomb.yaml"]),
    "recipe: rank": changed_recipe("memory", "lora", "rank", value=10**12),
    "recipe: tokens": changed_recipe("memory", "kv", "tokens", value=10**15),
    "recipe: sequence length": changed_recipe("sequence_length", value=10**15),
    "recipe: a number of 5,000 digits": recipe("seed: " + "9" * 5000),
    "text: zstd": text("b.txt.zst", lambda: zstandard.ZstdCompressor().compress(ZEROS)),
    "text: gzip": text("b.txt.gz", lambda: gzip.compress(ZEROS, 1)),
    "text: xz": text("b.txt.xz", lambda: lzma.compress(ZEROS[:50_000_000], preset=0)),
    "text: bzip2": text("b.txt.bz2", lambda: bz2.compress(ZEROS[:50_000_000], 1)),
    "text: a line of 300 MB": text("b.txt", lambda: b"x" * 300_000_000),
    "records: a line of 200 MB": text("b.jsonl", lambda: b'{"text": "' + b"x" * 200_000_000 + b'"}'),
    "records: deep": text("b.jsonl", lambda: b'{"text": ' + DEEP.encode()),
    "records: a deep array": text("b.json", lambda: DEEP.encode()),
    "records: a cell of 200 MB": text("b.csv", lambda: b'text\n"' + b"x" * 200_000_000),
    "text: a pipe": pipe("b.txt", command=[*MEASURE, "b.txt"]),
    "text: a device without end": lambda folder: [*MEASURE, "/dev/zero"],
    "weights: deep header": written(WEIGHTS, header('{"t": ' + DEEP), INSPECT_BASE),
    "weights: 300,000 tensors": written(WEIGHTS, header(tensors(300_000)), INSPECT_BASE),
    "weights: a header of 2^62 bytes": written(WEIGHTS, header("{}", 1 << 62), INSPECT_BASE),
    "weights: a shape that overflows": written(WEIGHTS, header(one(shape=[1 << 40, 1 << 40])), INSPECT_BASE),
    "weights: a negative shape": written(WEIGHTS, header(one(shape=[-1])), INSPECT_BASE),
    "weights: infinite offsets": written(
        WEIGHTS, header('{"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e999]}}'), INSPECT_BASE
    ),
    "weights: a pipe": pipe("base", "model.safetensors", command=INSPECT_BASE),
    "config: a billion layers": config(num_hidden_layers=10**9),
    "config: a vocabulary of 10^15": config(vocab_size=10**15),
    "config: deep": written("base/config.json", lambda: b'{"a": ' + DEEP.encode(), INSPECT_BASE),
    "manifest: deep": written("out/koffkit.json", lambda: b'{"a": ' + DEEP.encode(), VERIFY),
    "manifest: 300 MB": written("out/koffkit.json", lambda: b'{"a": "' + b"x" * 300_000_000 + b'"}', INSPECT),
    "manifest: a pipe": pipe("out", "koffkit.json", command=VERIFY),
    "bundle: deep": written("out/memories/north/memory.json", lambda: DEEP.encode(), INSPECT),
    "adapter: deep": listed("memories/north/adapter_config.json", lambda: DEEP.encode(), GENERATE),
    "router: deep": listed("router/config.json", lambda: DEEP.encode(), GENERATE),
    "tokenizer: deep": listed("backbone/tokenizer.json", lambda: DEEP.encode(), GENERATE),
    "run state: deep": written("run/run.json", lambda: DEEP.encode(), RUN),
    "run state: 300 MB": written("run/run.json", lambda: b'{"a": "' + b"x" * 300_000_000 + b'"}', RUN),
    "run state: a pipe": pipe("run", "run.json", command=RUN),
}
