"""The KV half of a memory as the start of a stock cache: what PEFT calls CARTRIDGE.

For stock attention the P memory tokens stand before the text, which therefore starts at position P. Memory
keys are not rotated where they are learned; here every one is rotated by the angle of P, so that what a
token sees depends on the distance that it had there.

Legend: L layers, K KV heads, P memory tokens, H head dim.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...artefact.bundle import Bundle, open_bundle
from ...artefact.digests import file_entry
from ...artefact.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BACKBONE, CARTRIDGE, MEMORY_FILE
from ...checkpoint.spec import ModelSpec
from ...storage.files import write_atomically, write_json
from .rotation import Rotary

if TYPE_CHECKING:
    from torch import Tensor

TENSOR = "prompt_embeddings"
"""PEFT's name for keys and values, [P, L * 2 * K * H]: of every layer first the keys, then the values."""


def write_cartridge(bundle: Bundle, backbone: Path, target: Path) -> None:
    """Write the KV half of a bundle as a folder that PEFT loads.

    Args:
        bundle: a memory with a KV half in every layer, whose heads are all alike.
        backbone: the checkpoint that it is for.
        target: the folder to make.
    """
    from safetensors.torch import save

    embeddings, heads, head_dim = prompt_embeddings(bundle, backbone)
    target.mkdir(parents=True)
    write_atomically(target / ADAPTER_WEIGHTS, save({TENSOR: embeddings}, metadata={"format": "pt"}))
    config = {
        "peft_type": "CARTRIDGE",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": f"./{BACKBONE}",
        "inference_mode": True,
        "num_virtual_tokens": embeddings.shape[0],
        "num_frozen_tokens": 0,
        "num_layers": embeddings.shape[1] // (2 * heads * head_dim),
        "num_attention_heads": heads,
        "num_transformer_submodules": 1,
        "token_dim": heads * head_dim,
    }
    write_json(target / ADAPTER_CONFIG, config)


def add_cartridge(bundle: Bundle, backbone: Path) -> Bundle:
    """Write the cartridge into the bundle itself, and list it in its `memory.json`; returns the bundle as it
    is then."""
    write_cartridge(bundle, backbone, bundle.path / CARTRIDGE)
    names = [f"{CARTRIDGE}/{name}" for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    entries = {name: file_entry(bundle.path / name) for name in names}
    info = open_bundle(bundle.path).info  # the gate has added golden logits
    info.evolve(files={**info.files, **entries}).write(bundle.path / MEMORY_FILE)
    return open_bundle(bundle.path)


def prompt_embeddings(bundle: Bundle, backbone: Path) -> tuple[Tensor, int, int]:
    """Keys, rotated by the angle of P, and values of a bundle.

    Args:
        bundle: as in `write_cartridge`.
        backbone: the checkpoint that it is for.

    Returns:
        [P, L * 2 * K * H] float32, K and H.
    """
    import torch

    from ...model.bundles import load_kv

    widths = ModelSpec.open(backbone).widths
    memory = load_kv(bundle, widths)
    rotary = Rotary(backbone)
    halves = []
    for layer in range(len(widths)):
        key, value = memory[layer].key.double(), memory[layer].value.double()
        halves += [rotary(key, layer), value]
    whole = torch.stack(halves).permute(2, 0, 1, 3)  # [P, 2 L, K, H]
    return whole.flatten(1).float().contiguous(), whole.shape[2], whole.shape[3]
