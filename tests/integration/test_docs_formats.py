"""The pages on run folder and artefact format say what the files are: names, keys, and how digests and packed
weights are computed."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from koffkit.artefact.quantise import pack

from ..conftest import Shipped

DOCS = Path(__file__).parents[2] / "docs"
ARTEFACT = (DOCS / "artefact-format.md").read_text(encoding="utf-8")
RUN = (DOCS / "run-folder.md").read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    return page.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def keys_in(text: str) -> set[str]:
    """What the first column of its tables names."""
    cells = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", " ".join(cells)))


def file_names(root: Path) -> set[str]:
    names = {path.name for path in root.rglob("*") if path.is_file()}
    return {re.sub(r"^(north|south|_retention)(?=\.)", "DOMAIN", name) for name in names}


def test_every_file_of_an_export_is_named(shipped: Shipped) -> None:
    names = file_names(shipped.export) - {"tokenizer_config.json", "generation_config.json"}
    assert len(names) > 8
    assert {name for name in names if name not in ARTEFACT.split("```")[1]} == set()


def test_every_file_of_a_run_is_named(shipped: Shipped) -> None:
    names = file_names(shipped.run) - {"config.json", "model.safetensors"}  # of the router
    assert len(names) > 8
    assert {name for name in names if name not in RUN.split("```")[1]} == set()


def test_every_key_of_the_metrics_is_explained(shipped: Shipped) -> None:
    rows = [json.loads(line) for line in (shipped.run / "metrics.jsonl").read_text().splitlines()]
    text = section(RUN, "metrics.jsonl")
    explained = keys_in(text) | set(re.findall(r"`(\w+)`", text.rpartition("Steps of")[2]))
    assert set().union(*rows) - explained == set()
    assert explained - set().union(*rows) == {
        "ce",
        "heldout_kl",
        "learn_masks",
        "local_sparsity",
        "lr_scales",
        "peak_memory_of_processes",
    }  # not in this run


def test_every_key_of_a_token_index_is_explained(shipped: Shipped) -> None:
    index = json.loads((shipped.run / "data" / "north.json").read_text())
    assert set(index) == keys_in(section(RUN, "data"))


def tensors_of(path: Path) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Header entry and bytes of each tensor, with nothing but what the safetensors format says."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    return {name: (entry, body[slice(*entry["data_offsets"])]) for name, entry in header.items()}


def test_the_digest_of_a_backbone_is_what_the_page_says(shipped: Shipped) -> None:
    lines = ""
    for name, (entry, data) in sorted(tensors_of(shipped.export / "backbone" / "model.safetensors").items()):
        line = f"{entry['dtype']} {entry['shape']}\n"
        lines += f"{name} {hashlib.sha256(line.encode() + data).hexdigest()}\n"
    manifest = json.loads((shipped.export / "koffkit.json").read_text())
    assert manifest["backbone"]["digest"] == hashlib.sha256(lines.encode()).hexdigest()


def by_the_page(stored: NDArray[np.uint8], dim: int) -> NDArray[np.int64]:
    """Integers of int6, as the page has it: four in three bytes, lowest bits first, each plus 32."""
    groups = np.moveaxis(stored, dim, -1).reshape(-1, stored.shape[dim] // 3, 3).astype(np.int64)
    bits = (groups << np.array([0, 8, 16])).sum(-1)
    integers = (bits[..., None] >> np.array([0, 6, 12, 18]) & 63) - 32
    shape = [*np.moveaxis(stored, dim, -1).shape[:-1], stored.shape[dim] // 3 * 4]
    return np.moveaxis(integers.reshape(shape), -1, dim)


@pytest.mark.parametrize(
    ("name", "dim"), [("x.lora_A.weight", 1), ("x.lora_B.weight", 0), ("layers.0.key", 2)]
)
def test_packed_weights_are_what_the_page_says(name: str, dim: int) -> None:
    weights = torch.randn((2, 12, 8) if dim == 2 else (12, 8), generator=torch.Generator().manual_seed(0))
    packed = {key: value.numpy() for key, value in pack({name: weights}, "int6").items()}
    stored, scale = packed[name], packed[f"{name}.scale"]
    assert stored.dtype == np.uint8
    assert scale.shape[dim] == 1
    again = by_the_page(stored, dim) * scale.astype(np.float32)
    assert np.abs(again - weights.numpy()).max() <= 0.51 * scale.max()
